//! Tests of the core as a whole: golden traces of the control loop, properties of all of it.

mod properties;
mod sim;
mod traces;
