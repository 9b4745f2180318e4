//! What every target shares: how it is called, and an allocator that ends it where one allocation is out of proportion.

use std::alloc::{GlobalAlloc, Layout, System};

pub use libfuzzer_sys;

/// The largest single allocation that input of a few KiB may lead to. (C code, as zstd's, is held by -rss_limit_mb.)
const ALLOCATION_MAX: usize = 64 << 20;

struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

fn refuse_large(size: usize) {
    if size > ALLOCATION_MAX {
        eprintln!("an allocation of {size} bytes");
        std::process::abort();
    }
}

// SAFETY: it hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        refuse_large(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        refuse_large(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        refuse_large(size);
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }
}

/// A fuzz target that hands its input to the wrapper of the same name.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| lifeboat::fuzzing::$name(data));
    };
}
