//! Tests of the core as a whole: golden traces of the control loop, properties of all of it.

mod bounds;
mod fixtures;
mod late;
mod properties;
mod samples;
mod sim;
mod traces;
