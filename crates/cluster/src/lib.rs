//! Who is there and who serves what.
