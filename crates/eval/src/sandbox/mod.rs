//! Where programs that a model wrote run.

/// A place that a program cannot leave.
#[derive(Debug)]
pub struct Sandbox {}
