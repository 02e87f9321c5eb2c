/// How a tensor's elements are stored; names and numbers are ggml's (`enum ggml_type`).
///
/// Every kind of the format is described here so that a file can be listed; which of them can be
/// computed with is `model`'s to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "ggml's own names")]
pub enum TensorKind {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
}

/// Number, kind, name, elements of a block, bytes of a block.
type Row = (u32, TensorKind, &'static str, u64, u64);

/// In the order of the enum: `kind as usize` is its index.
const TABLE: [Row; 32] = {
    use TensorKind::*;
    [
        (0, F32, "F32", 1, 4),
        (1, F16, "F16", 1, 2),
        (2, Q4_0, "Q4_0", 32, 18),
        (3, Q4_1, "Q4_1", 32, 20),
        (6, Q5_0, "Q5_0", 32, 22),
        (7, Q5_1, "Q5_1", 32, 24),
        (8, Q8_0, "Q8_0", 32, 34),
        (9, Q8_1, "Q8_1", 32, 36),
        (10, Q2_K, "Q2_K", 256, 84),
        (11, Q3_K, "Q3_K", 256, 110),
        (12, Q4_K, "Q4_K", 256, 144),
        (13, Q5_K, "Q5_K", 256, 176),
        (14, Q6_K, "Q6_K", 256, 210),
        (15, Q8_K, "Q8_K", 256, 292),
        (16, IQ2_XXS, "IQ2_XXS", 256, 66),
        (17, IQ2_XS, "IQ2_XS", 256, 74),
        (18, IQ3_XXS, "IQ3_XXS", 256, 98),
        (19, IQ1_S, "IQ1_S", 256, 50),
        (20, IQ4_NL, "IQ4_NL", 32, 18),
        (21, IQ3_S, "IQ3_S", 256, 110),
        (22, IQ2_S, "IQ2_S", 256, 82),
        (23, IQ4_XS, "IQ4_XS", 256, 136),
        (24, I8, "I8", 1, 1),
        (25, I16, "I16", 1, 2),
        (26, I32, "I32", 1, 4),
        (27, I64, "I64", 1, 8),
        (28, F64, "F64", 1, 8),
        (29, IQ1_M, "IQ1_M", 256, 56),
        (30, BF16, "BF16", 1, 2),
        (34, TQ1_0, "TQ1_0", 256, 54),
        (35, TQ2_0, "TQ2_0", 256, 66),
        (39, MXFP4, "MXFP4", 32, 17),
    ]
};

impl TensorKind {
    /// The kind of a file's type number; `None` when this version does not know it.
    pub fn from_number(number: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.0 == number).map(|row| row.1)
    }

    /// The number that a file stores.
    pub fn number(self) -> u32 {
        self.row().0
    }

    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements of one block; a row of a tensor is whole blocks. 1 for plain numbers.
    pub fn block_elems(self) -> u64 {
        self.row().3
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> u64 {
        self.row().4
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
}

impl std::fmt::Display for TensorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What to tell someone whose file has a number that [`TensorKind::from_number`] does not know.
pub(crate) fn why_unknown(number: u32) -> &'static str {
    match number {
        4 | 5 | 31..=33 | 36..=38 => "ggml has removed it; use a file quantised again",
        _ => "use a file in a common quantisation such as Q4_K_M or Q8_0",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.1 as usize, index, "{}", row.2);
            assert_eq!(format!("{:?}", row.1), row.2);
            assert_eq!(TensorKind::from_number(row.0), Some(row.1));
        }
        for gone in [4, 5, 31, 38, 1000] {
            assert_eq!(TensorKind::from_number(gone), None);
        }
    }

    #[test]
    fn sizes_follow_the_definitions_of_the_blocks() {
        use TensorKind::*;
        // kind, bits of an element's own quants, bytes of scales and minima in a block.
        for (kind, bits, scales) in [
            (Q4_0, 4, 2),
            (Q4_1, 4, 4),
            (Q5_0, 5, 2),
            (Q5_1, 5, 4),
            (Q8_0, 8, 2),
            (Q2_K, 2, 16 + 4),
            (Q3_K, 3, 12 + 2),
            (Q4_K, 4, 12 + 4),
            (Q5_K, 5, 12 + 4),
            (Q6_K, 6, 16 + 2),
        ] {
            assert_eq!(kind.block_bytes(), kind.block_elems() * bits / 8 + scales, "{kind}");
        }
    }
}
