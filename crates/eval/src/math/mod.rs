//! Reads the answers of GSM8K and MATH and says whether they are right.
//!
//! - [`gsm8k`]: the number in an answer, as lm-evaluation-harness reads it.
//! - [`hendrycks`]: the MATH paper's comparison of texts, exactly.

pub mod gsm8k;
pub mod hendrycks;
