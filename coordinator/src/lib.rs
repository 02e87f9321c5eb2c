//! The front door and the map.
