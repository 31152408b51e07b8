//! Tests of the core as a whole: golden traces of the control loop, properties of all of it.

mod bounds;
mod fixtures;
mod late;
mod newer;
mod properties;
pub(crate) mod samples;
mod sim;
mod traces;
