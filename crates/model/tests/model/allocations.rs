//! A step allocates nothing for its arithmetic once it has run before.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use engine::Model;
use gguf::TensorKind;
use kvcache::PAGE_POSITIONS;
use sampling::Draw;

use crate::steps::Sequences;
use crate::tiny::{Shape, Tiny, tokens};

/// Counts what the current thread asks for.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static ASKED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

// SAFETY: everything is done by the system's allocator; counting allocates nothing.
#[allow(unsafe_code, reason = "an allocator cannot be written without")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Not during the thread's end, when the counter is gone.
        let _ = ASKED.try_with(|asked| {
            let (times, bytes) = asked.get();
            asked.set((times + 1, bytes + layout.size()));
        });
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}

/// What is left is the step's bookkeeping: its checked rows, the rows that pick, the picks. It does not grow
/// with the layers or the width. A step with a new page copies the sequence's table of pages besides.
#[test]
fn a_decode_step_allocates_only_its_lists() {
    let tokens = tokens(620);
    for kind in [TensorKind::Q4_K, TensorKind::Q5_0, TensorKind::F16] {
        // On one thread all of it is this one.
        let mut model = Tiny::new(Shape::of("llama", kind)).load(1).unwrap();
        let mut sequences = Sequences::new(1, 0);
        model.logits(&sequences.step(&[(0, 0, &tokens[..590])])).unwrap();
        for position in 590..620 {
            let step = sequences.step(&[(0, position, &tokens[position as usize..=position as usize])]);
            let draws = [Draw::new(request::Sampling::GREEDY)];
            let before = ASKED.get();
            let ticket = model.submit(&step).unwrap();
            model.collect(ticket, &draws).unwrap();
            let (times, bytes) = (ASKED.get().0 - before.0, ASKED.get().1 - before.1);
            if position > 592 {
                // One allocation in each of the two layers would show.
                let most = if position % PAGE_POSITIONS == 0 { (12, 4096) } else { (9, 512) };
                assert!(times <= most.0 && bytes <= most.1, "{kind} {position}: {times} of {bytes} bytes");
            }
        }
    }
}
