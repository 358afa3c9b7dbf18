//! What a tensor of packed bytes stands for: a line under its name in the metadata of its file.
//!
//! The bytes themselves are the business of the kernels that lay them out; here they only have a name and a shape.

use std::fmt;

/// How every such line begins.
const MARK: &str = "kanana";

/// A matrix whose elements are codes with scales, stored as U8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    /// The format: `q8`, `q4`.
    pub format: String,
    /// The version of its layout.
    pub version: u32,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
}

/// The line to leave in [`SaveOptions::metadata`](crate::SaveOptions) under the name of the tensor.
impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packing { format, version, shape: [out_features, in_features] } = self;
        write!(f, "{MARK} {format} v{version} {out_features}x{in_features}")
    }
}

impl Packing {
    /// Whether a text is meant to be such a line: other writers may leave their own under the name of a tensor.
    pub(crate) fn is_meant(text: &str) -> bool {
        text.split(' ').next() == Some(MARK)
    }

    /// Reads a line; none unless it is exactly what [`Packing`] writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let [_mark, format, version, shape] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let (out_features, in_features) = shape.split_once('x')?;
        let packing = Packing {
            format: format.to_owned(),
            version: version.strip_prefix('v')?.parse().ok()?,
            shape: [out_features.parse().ok()?, in_features.parse().ok()?],
        };
        (!format.is_empty() && packing.to_string() == text).then_some(packing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_and_no_other_does() {
        let packing = Packing { format: "q4".into(), version: 1, shape: [8064, 1792] };
        assert_eq!(packing.to_string(), "kanana q4 v1 8064x1792");
        assert_eq!(Packing::parse(&packing.to_string()), Some(packing));
        for broken in [
            "kanana",
            "kanana q4 v1",
            "kanana q4 1 8064x1792",
            "kanana q4 v1 8064",
            "kanana q4 v1 8064x1792x2",
            "kanana q4 v1 +8064x1792",
            "kanana q4 v01 8064x1792",
            "kanana  v1 8064x1792",
            "kanana q4 v1 99999999999999999999x1",
            "kanana q4 v1 8064x1792 ",
            "pytorch q4 v1 8064x1792",
        ] {
            assert_eq!(Packing::parse(broken), None, "{broken:?}");
        }
        assert!(Packing::is_meant("kanana q5") && !Packing::is_meant("kananas") && !Packing::is_meant("pt"));
    }
}
