//! The wire: protobuf packages and their conversions.
