//! One file for each family of tasks.
