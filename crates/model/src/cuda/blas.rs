//! Products of many rows, by cuBLASLt: y = x W^T, row-major as everything here.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::cublaslt::{result, sys};

use super::error::Doing;
use super::{Buffer, CudaError, Device, Dtype};

/// cuBLASLt on one device, with the algorithm of every shape that was met.
pub(crate) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    plans: RefCell<HashMap<Shape, Plan>>,
}

/// One product: `rows` rows of `inputs` values with a matrix of `outputs` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) rows: u32,
    pub(crate) inputs: u32,
    pub(crate) outputs: u32,
    /// Of x and W.
    pub(crate) dtype: Dtype,
    /// Of y.
    pub(crate) out: Dtype,
    /// y += instead of y =.
    pub(crate) add: bool,
}

struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// Enough for the split-K algorithms of Hopper (the vendor's advice is 32 MiB).
const WORKSPACE: usize = 64 << 20;
/// Algorithms that are timed for a shape, and runs of each between two looks at the clock.
const CANDIDATES: usize = 24;
const TIMED: usize = 8;
/// The fastest so many are timed again, for longer: the best of many short looks is often the luckiest.
const FINALISTS: usize = 4;

impl Blas {
    pub(crate) fn new(device: &Device) -> Result<Self, CudaError> {
        // SAFETY: looks for the library and opens it; nothing is called in it.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoLibrary { library: "libcublasLt", version: "13" });
        }
        device.bind()?;
        let handle = result::create_handle().doing("starting cuBLASLt")?;
        let workspace = Buffer::zeros(device, "the workspace of cuBLASLt", WORKSPACE)?;
        Ok(Self { handle, workspace, plans: RefCell::default() })
    }

    /// Chooses the algorithm of a shape by timing the likeliest few on `x`, `y` and matrices of the shape in turn: one
    /// that was just read would lie in the cache, where a step never finds it. What `y` holds is lost. Not under capture.
    pub(crate) fn tune(
        &self,
        device: &Device,
        shape: Shape,
        matrices: &[u64],
        [x, y]: [u64; 2],
    ) -> Result<(), CudaError> {
        if matrices.is_empty() || self.plans.borrow().contains_key(&shape) {
            return Ok(());
        }
        let (mut plan, found) = self.plan(shape)?;
        let turn = Cell::new(0);
        let run = |algorithm| {
            turn.set((turn.get() + 1) % matrices.len());
            self.execute(device, &Plan { algorithm, ..plan }, shape.add, matrices[turn.get()], x, y)
        };
        let mut timed = Vec::new();
        for algorithm in found {
            // An algorithm that does not run on this chip after all is no candidate.
            if run(algorithm).and_then(|()| device.synchronize()).is_ok() {
                timed.push((super::timing::time(device, 3, TIMED, || run(algorithm))?, algorithm));
            }
        }
        timed.sort_by(|a, b| a.0.total_cmp(&b.0));
        timed.truncate(FINALISTS);
        for (taken, algorithm) in &mut timed {
            *taken = super::timing::time(device, 7, 2 * TIMED, || run(*algorithm))?;
        }
        if let Some((_, algorithm)) = timed.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)) {
            plan.algorithm = algorithm;
        }
        self.plans.borrow_mut().insert(shape, plan);
        Ok(())
    }

    /// y = x W^T, or y += x W^T, at the addresses given; the buffers behind them must hold the shape.
    pub(crate) fn multiply(
        &self,
        device: &Device,
        shape: Shape,
        [w, x, y]: [u64; 3],
    ) -> Result<(), CudaError> {
        if !self.plans.borrow().contains_key(&shape) {
            let (plan, _) = self.plan(shape)?;
            self.plans.borrow_mut().insert(shape, plan);
        }
        match self.plans.borrow().get(&shape) {
            Some(plan) => self.execute(device, plan, shape.add, w, x, y),
            None => Err(CudaError::NotBuilt { what: "a product without a plan" }),
        }
    }

    fn execute(
        &self,
        device: &Device,
        plan: &Plan,
        add: bool,
        w: u64,
        x: u64,
        y: u64,
    ) -> Result<(), CudaError> {
        let (alpha, beta) = (1.0f32, if add { 1.0f32 } else { 0.0 });
        let constant = |address: u64| address as *const c_void;
        // SAFETY: handle, descriptor and layouts live as long as self; the addresses are of device buffers that hold
        // the shape (the caller's duty); alpha and beta are read before the call returns.
        unsafe {
            result::matmul(
                self.handle,
                plan.desc,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                constant(w),
                plan.w,
                constant(x),
                plan.x,
                constant(y),
                plan.y,
                y as *mut c_void,
                plan.y,
                &raw const plan.algorithm,
                self.workspace.at(0) as *mut c_void,
                self.workspace.bytes(),
                device.stream.cu_stream().cast(),
            )
        }
        .doing("a product")
    }

    /// Descriptors of a shape and the algorithms that suit it, the likeliest first.
    fn plan(&self, s: Shape) -> Result<(Plan, Vec<sys::cublasLtMatmulAlgo_t>), CudaError> {
        let doing = "preparing a product";
        let scale = sys::cudaDataType_t::CUDA_R_32F;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let desc = result::create_matmul_desc(compute, scale).doing(doing)?;
        // Column-major, W is [inputs, outputs]: transposed it gives y as [outputs, rows].
        // CUBLAS_OP_T, which the bindings of cuBLASLt leave out.
        let transpose = 1i32;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the descriptor is new; the value is read before the call returns.
        unsafe {
            result::set_matmul_desc_attribute(
                desc,
                attribute,
                (&raw const transpose).cast(),
                size_of_val(&transpose),
            )
        }
        .doing(doing)?;
        let layout = |kind, rows: u32, columns: u32| {
            result::create_matrix_layout(kind, u64::from(rows), u64::from(columns), i64::from(rows))
                .doing(doing)
        };
        let (inputs, outputs) = (kind(s.dtype), kind(s.out));
        let (w, x, y) = (
            layout(inputs, s.inputs, s.outputs)?,
            layout(inputs, s.inputs, s.rows)?,
            layout(outputs, s.outputs, s.rows)?,
        );
        let preference = result::create_matmul_pref().doing(doing)?;
        let workspace = WORKSPACE;
        let most = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let mut found = [MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); CANDIDATES];
        let mut count = 0;
        // SAFETY: all descriptors are valid; `found` has room for CANDIDATES results.
        let asked = unsafe {
            let set = result::set_matmul_pref_attribute(
                preference,
                most,
                (&raw const workspace).cast(),
                size_of_val(&workspace),
            );
            let asked = set.and_then(|()| {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    self.handle,
                    desc,
                    w,
                    x,
                    y,
                    y,
                    preference,
                    CANDIDATES as i32,
                    found.as_mut_ptr().cast(),
                    &raw mut count,
                )
                .result()
            });
            asked.and(result::destroy_matmul_pref(preference))
        };
        asked.doing("choosing an algorithm for a product")?;
        // SAFETY: the first `count` results were written.
        let found = found.iter().take(count.max(0) as usize).map(|f| unsafe { f.assume_init() });
        let found: Vec<_> = found.filter(|f| f.state.result().is_ok()).map(|f| f.algo).collect();
        let Some(first) = found.first().copied() else {
            return Err(CudaError::NotBuilt {
                what: "a product of a shape that cuBLASLt has no algorithm for",
            });
        };
        Ok((Plan { desc, w, x, y, algorithm: first }, found))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: everything was made by this handle and is used no more. A failure leaks, which is all that can be
        // done here.
        unsafe {
            for plan in self.plans.borrow().values() {
                let _ = result::destroy_matmul_desc(plan.desc);
                for layout in [plan.w, plan.x, plan.y] {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
            let _ = result::destroy_handle(self.handle);
        }
    }
}

fn kind(dtype: Dtype) -> sys::cudaDataType_t {
    match dtype {
        Dtype::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        Dtype::F16 => sys::cudaDataType_t::CUDA_R_16F,
    }
}
