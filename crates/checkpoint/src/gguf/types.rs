//! The tensor types of ggml: their ids in files, their names, and how many bytes a block of elements takes.

macro_rules! ggml_types {
    ($($name:ident = $id:literal, $elements:literal, $bytes:literal;)*) => {
        /// How the elements of a tensor are stored.
        ///
        /// Source: `ggml.h` and `ggml-common.h` of ggml, as vendored by llama-cpp-python 0.3.36. Types that are known by
        /// name only, so that errors can say what a file holds, are not [readable](GgmlType::is_readable).
        #[allow(non_camel_case_types, missing_docs)] // The names of the field, spelled as files and tools spell them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum GgmlType {
            $($name,)*
        }

        impl GgmlType {
            /// All of them, by id.
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$name,)*];

            /// The number in files.
            pub const fn id(self) -> u32 {
                match self { $(GgmlType::$name => $id,)* }
            }

            /// The name in tools and messages.
            pub const fn name(self) -> &'static str {
                match self { $(GgmlType::$name => stringify!($name),)* }
            }

            /// Elements of one block; a row is a whole number of blocks.
            pub const fn block_len(self) -> usize {
                match self { $(GgmlType::$name => $elements,)* }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize {
                match self { $(GgmlType::$name => $bytes,)* }
            }
        }
    };
}

ggml_types! {
    F32 = 0, 1, 4;
    F16 = 1, 1, 2;
    Q4_0 = 2, 32, 18;
    Q4_1 = 3, 32, 20;
    Q5_0 = 6, 32, 22;
    Q5_1 = 7, 32, 24;
    Q8_0 = 8, 32, 34;
    Q8_1 = 9, 32, 36;
    Q2_K = 10, 256, 84;
    Q3_K = 11, 256, 110;
    Q4_K = 12, 256, 144;
    Q5_K = 13, 256, 176;
    Q6_K = 14, 256, 210;
    Q8_K = 15, 256, 292;
    IQ2_XXS = 16, 256, 66;
    IQ2_XS = 17, 256, 74;
    IQ3_XXS = 18, 256, 98;
    IQ1_S = 19, 256, 50;
    IQ4_NL = 20, 32, 18;
    IQ3_S = 21, 256, 110;
    IQ2_S = 22, 256, 82;
    IQ4_XS = 23, 256, 136;
    I8 = 24, 1, 1;
    I16 = 25, 1, 2;
    I32 = 26, 1, 4;
    I64 = 27, 1, 8;
    F64 = 28, 1, 8;
    IQ1_M = 29, 256, 56;
    BF16 = 30, 1, 2;
    TQ1_0 = 34, 256, 54;
    TQ2_0 = 35, 256, 66;
    MXFP4 = 39, 32, 17;
}

impl GgmlType {
    /// The type of that number.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.id() == id)
    }

    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.name() == name)
    }

    /// Whether elements share a scale, so that storing them lost precision.
    pub const fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// Whether tensors of this type can be turned into numbers here.
    pub const fn is_readable(self) -> bool {
        use GgmlType::*;
        matches!(
            self,
            F32 | F16
                | BF16
                | Q8_0
                | Q4_0
                | Q4_1
                | Q5_0
                | Q5_1
                | Q2_K
                | Q3_K
                | Q4_K
                | Q5_K
                | Q6_K
                | IQ4_NL
                | IQ4_XS
        )
    }

    /// The bytes of a tensor of so many elements.
    pub(crate) const fn bytes_of(self, elements: usize) -> usize {
        elements / self.block_len() * self.block_bytes()
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_lead_back() {
        for &t in GgmlType::ALL {
            assert_eq!((GgmlType::from_id(t.id()), GgmlType::from_name(t.name())), (Some(t), Some(t)));
        }
        assert_eq!((GgmlType::from_id(4), GgmlType::from_name("q4_k")), (None, None));
        assert_eq!(GgmlType::Q4_K.bytes_of(512), 288);
    }
}
