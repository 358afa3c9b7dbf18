//! One file for each family of tasks.
pub mod ifeval;
