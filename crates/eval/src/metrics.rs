//! Means with their intervals, and the metrics of the field.
