//! Python's random numbers.
