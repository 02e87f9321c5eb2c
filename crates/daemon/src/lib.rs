//! What every process does: configuration, admin port, join, shutdown.
