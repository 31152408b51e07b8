//! State × command → changes or rejection.
