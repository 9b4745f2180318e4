//! What a reader keeps for a while: packs and frames that others may want too, and buffers to be used again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Free buffers for content kept at once.
const BUFFERS_KEPT: usize = 3;
/// The least of them: a small one would keep a large one from those who need it.
const BUFFER_LEAST: usize = 1 << 20;

/// A small cache with one fetch per key at a time.
pub(super) struct Cache<K, C> {
    kept: usize,
    cells: Mutex<VecDeque<(K, Arc<C>)>>,
}

impl<K: PartialEq + Copy, C: Default> Cache<K, C> {
    /// Of so many at most.
    pub(super) fn new(kept: usize) -> Self {
        Self {
            kept,
            cells: Mutex::new(VecDeque::new()),
        }
    }
    /// The cell of a key, made if need be; the least recently asked for one goes.
    pub(super) fn cell(&self, key: K) -> Arc<C> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cells
            .iter()
            .position(|(k, _)| *k == key)
            .and_then(|at| cells.remove(at));
        let entry = found.unwrap_or_else(|| (key, Arc::new(C::default())));
        let cell = entry.1.clone();
        cells.push_back(entry);
        while cells.len() > self.kept {
            cells.pop_front();
        }
        cell
    }
}

/// Buffers for content, used again: new memory costs the system a page at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// A buffer that goes back to where it came from.
pub(super) struct Buffer(pub(super) Vec<u8>, Buffers);

impl Buffers {
    /// One of this length; what is in it is of others.
    pub(super) fn take(&self, length: usize) -> Buffer {
        let mut buffer = Vec::new();
        if length >= BUFFER_LEAST {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            buffer = kept.pop().unwrap_or_default();
        }
        buffer.resize(length, 0);
        Buffer(buffer, self.clone())
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.len() < BUFFER_LEAST {
            return;
        }
        let mut kept = self.1.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < BUFFERS_KEPT {
            kept.push(std::mem::take(&mut self.0));
        }
    }
}
