//! What happens to rows between the products; the kernels are in `kernels/elementwise.cu`.

#[cfg(test)]
mod tests;

use super::{Arg, Buffer, Cells, CudaError, Device, Dtype, FP8_OF_OTHERS, Kernel, KvKept, Launch, Module};

/// Launchers of the kernels for one element type, kind of page and head size.
pub(crate) struct Elementwise {
    _module: Module,
    embed: Kernel,
    rms_norm: Kernel,
    silu_mul: Kernel,
    fill: Kernel,
    rope_and_keep: Kernel,
    write_table: Kernel,
    take_tokens: Kernel,
    head_dim: u32,
    dtype: Dtype,
}

/// What the rows of a step are, on the device: an entry a row in each array.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    /// How many, padding included.
    pub(crate) count: u32,
    pub(crate) tokens: u64,
    pub(crate) positions: u64,
    /// -1: a row of padding.
    pub(crate) slots: u64,
    /// At which position of its slot each row's key and value are stored: its own, but for rows of trees.
    pub(crate) stored: u64,
}

/// Cosines and sines of all positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Angles {
    /// `[positions][dims / 2]` pairs of f32.
    pub(crate) table: u64,
    pub(crate) dims: u32,
    /// As `RopeStyle` in the kernel.
    pub(crate) style: u32,
}

/// Keys and values of one head class in one layer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pool {
    pub(crate) base: u64,
    /// From one page to the next, in stored elements ([`Cells::element`]).
    pub(crate) page: u64,
    /// i32 pages, `[slots][stride]`.
    pub(crate) table: u64,
    pub(crate) stride: u64,
}

/// Elements of a buffer as a part of a whole matrix: `rows` rows of `width`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filled {
    /// The first, in the buffer.
    pub(crate) at: usize,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    /// Elements from one row to the next, in the whole.
    pub(crate) stride: usize,
    /// Index in the whole of the first.
    pub(crate) first: usize,
}

impl Filled {
    /// All `elements` of a buffer.
    pub(crate) fn whole(elements: usize) -> Self {
        Self { at: 0, rows: 1, width: elements, stride: elements, first: 0 }
    }
}

/// What is done to each head of q and k besides RoPE; 0: nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    /// f32, one for each element of q, k and v.
    pub(crate) bias: u64,
    pub(crate) q_norm: u64,
    pub(crate) k_norm: u64,
    /// i32 pairs: class and index in the class of each KV head.
    pub(crate) places: u64,
    pub(crate) epsilon: f32,
}

impl Elementwise {
    pub(crate) fn new(device: &Device, cells: Cells) -> Result<Self, CudaError> {
        let Cells { dtype, kept, head_dim } = cells;
        let module = device.module(include_bytes!(concat!(env!("OUT_DIR"), "/elementwise.fatbin")))?;
        let names = match dtype {
            Dtype::F32 => ["embed_f32", "rms_norm_f32", "silu_mul_f32", "fill_f32"],
            Dtype::Bf16 => ["embed_bf16", "rms_norm_bf16", "silu_mul_bf16", "fill_bf16"],
            Dtype::F16 => ["embed_f16", "rms_norm_f16", "silu_mul_f16", "fill_f16"],
        };
        let rope = match (dtype, kept, head_dim) {
            (Dtype::F32, KvKept::Dtype, 64) => "rope_and_keep_f32_64",
            (Dtype::F32, KvKept::Dtype, 128) => "rope_and_keep_f32_128",
            (Dtype::Bf16, KvKept::Dtype, 64) => "rope_and_keep_bf16_64",
            (Dtype::Bf16, KvKept::Dtype, 128) => "rope_and_keep_bf16_128",
            (Dtype::Bf16, KvKept::Fp8, 64) => "rope_and_keep_fp8_64",
            (Dtype::Bf16, KvKept::Fp8, 128) => "rope_and_keep_fp8_128",
            (Dtype::F16, KvKept::Dtype, 64) => "rope_and_keep_f16_64",
            (Dtype::F16, KvKept::Dtype, 128) => "rope_and_keep_f16_128",
            (_, KvKept::Fp8, 64 | 128) => return Err(CudaError::NotBuilt { what: FP8_OF_OTHERS }),
            _ => return Err(CudaError::NotBuilt { what: "a head size other than 64 and 128" }),
        };
        let [embed, rms_norm, silu_mul, fill] = names;
        Ok(Self {
            embed: module.kernel(embed, 0)?,
            rms_norm: module.kernel(rms_norm, 0)?,
            silu_mul: module.kernel(silu_mul, 0)?,
            fill: module.kernel(fill, 0)?,
            rope_and_keep: module.kernel(rope, 0)?,
            write_table: module.kernel("write_table", 0)?,
            take_tokens: module.kernel("take_tokens", 0)?,
            _module: module,
            head_dim: head_dim as u32,
            dtype,
        })
    }

    /// x (float) = rows of the embedding; zeros for padding.
    pub(crate) fn embed(
        &self,
        device: &Device,
        embedding: &Buffer,
        rows: Rows,
        x: u64,
        hidden: u32,
    ) -> Result<(), CudaError> {
        let args: [Arg; 5] =
            [embedding.at(0).into(), rows.tokens.into(), rows.slots.into(), x.into(), hidden.into()];
        device.launch(self.embed, per_row(rows.count, hidden), &args)
    }

    /// out = norm(x) of `count` rows; with `picked` (i32 indices) of those rows.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn rms_norm(
        &self,
        device: &Device,
        x: u64,
        picked: Option<u64>,
        count: u32,
        norm: super::linear::Norm,
        out: u64,
        hidden: u32,
    ) -> Result<(), CudaError> {
        assert!(hidden.is_multiple_of(4), "a hidden size of {hidden}");
        let (picked, weight) = (picked.unwrap_or(0).into(), norm.weight.into());
        let args: [Arg; 6] = [x.into(), picked, weight, out.into(), hidden.into(), norm.epsilon.into()];
        device.launch(self.rms_norm, per_row(count, hidden), &args)
    }

    /// Bias, head norms and RoPE of q (in place) and k; k and v go to their pages. `pools`: of the classes.
    pub(crate) fn rope_and_keep(
        &self,
        device: &Device,
        qkv: u64,
        rows: Rows,
        heads: Heads,
        angles: Angles,
        pools: [Pool; 2],
    ) -> Result<(), CudaError> {
        const WARPS: u32 = 4;
        let all = heads.heads + 2 * heads.kv_heads;
        let launch = Launch { grid: [rows.count, all.div_ceil(WARPS), 1], threads: WARPS * 32, shared: 0 };
        let [full, window] = pools;
        let args: [Arg; 22] = [
            qkv.into(),
            heads.bias.into(),
            heads.q_norm.into(),
            heads.k_norm.into(),
            rows.positions.into(),
            rows.slots.into(),
            rows.stored.into(),
            angles.table.into(),
            angles.dims.into(),
            angles.style.into(),
            full.base.into(),
            full.page.into(),
            full.table.into(),
            full.stride.into(),
            window.base.into(),
            window.page.into(),
            window.table.into(),
            window.stride.into(),
            heads.places.into(),
            heads.heads.into(),
            heads.kv_heads.into(),
            heads.epsilon.into(),
        ];
        debug_assert!(angles.dims <= self.head_dim);
        device.launch(self.rope_and_keep, launch, &args)
    }

    /// out = silu(first half) * second half of each row of `both`, which has twice `width` values.
    pub(crate) fn silu_mul(
        &self,
        device: &Device,
        both: u64,
        out: u64,
        rows: u32,
        width: u32,
    ) -> Result<(), CudaError> {
        assert!(width.is_multiple_of(8), "a feed-forward of {width}");
        let across = width.div_ceil(2048).clamp(1, 16);
        let launch = Launch { grid: [rows, across, 1], threads: 256, shared: 0 };
        device.launch(self.silu_mul, launch, &[both.into(), out.into(), width.into()])
    }

    /// Writes `count` entries (slot, index, page, unused; i32) into a page table.
    pub(crate) fn write_table(
        &self,
        device: &Device,
        table: &Buffer,
        stride: u32,
        entries: u64,
        count: u32,
    ) -> Result<(), CudaError> {
        let launch = Launch { grid: [count.div_ceil(128), 1, 1], threads: 128, shared: 0 };
        let args: [Arg; 4] = [table.at(0).into(), u64::from(stride).into(), entries.into(), count.into()];
        device.launch(self.write_table, launch, &args)
    }

    /// The first `count` tokens of a step, which are indices of rows of a draw, become what those rows gave; `drawn`: pairs of
    /// token and status, at least as many as the highest index.
    pub(crate) fn take_tokens(
        &self,
        device: &Device,
        tokens: u64,
        drawn: u64,
        count: u32,
        vocab: u32,
    ) -> Result<(), CudaError> {
        let launch = Launch { grid: [count.div_ceil(128), 1, 1], threads: 128, shared: 0 };
        let args: [Arg; 4] = [tokens.into(), drawn.into(), count.into(), vocab.into()];
        device.launch(self.take_tokens, launch, &args)
    }

    /// Fills elements of a buffer with numbers between `-scale` and `scale` that follow from the seed and from
    /// where they are in the whole matrix.
    pub(crate) fn fill(
        &self,
        device: &Device,
        to: &Buffer,
        part: Filled,
        seed: u64,
        scale: f32,
    ) -> Result<(), CudaError> {
        let Filled { at, rows, width, stride, first } = part;
        let count = rows * width;
        assert!((at + count) * self.dtype.bytes() <= to.bytes(), "a fill beyond the buffer");
        let launch = Launch { grid: [device.multiprocessors * 8, 1, 1], threads: 256, shared: 0 };
        let args: [Arg; 8] = [
            to.at(at * self.dtype.bytes()).into(),
            (count as u64).into(),
            seed.into(),
            0.0f32.into(),
            scale.into(),
            (width.max(1) as u64).into(),
            (stride as u64).into(),
            (first as u64).into(),
        ];
        device.launch(self.fill, launch, &args)
    }
}

/// A block a row.
fn per_row(rows: u32, width: u32) -> Launch {
    Launch { grid: [rows, 1, 1], threads: width.div_ceil(8).next_multiple_of(32).clamp(64, 512), shared: 0 }
}
