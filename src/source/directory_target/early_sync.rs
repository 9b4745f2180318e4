//! Syncs while more is written.

use std::fs::File;
use std::sync::Arc;

/// So much is brought to disk at a time.
const SYNC_EVERY_BYTES: u64 = 64 << 20;

/// Brings what was written to disk while more is decoded: else all of a large file would wait for its last byte.
pub(super) struct EarlySync {
    file: Arc<File>,
    unsynced: u64,
    running: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
}

impl EarlySync {
    pub(super) fn new(file: Arc<File>) -> Self {
        Self {
            file,
            unsynced: 0,
            running: None,
        }
    }
    pub(super) async fn wrote(&mut self, length: u64) -> std::io::Result<()> {
        self.unsynced += length;
        if self.unsynced < SYNC_EVERY_BYTES || self.running.as_ref().is_some_and(|r| !r.is_finished()) {
            return Ok(());
        }
        self.finish().await?;
        self.unsynced = 0;
        let file = self.file.clone();
        self.running = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        Ok(())
    }
    /// An error of a sync is told once: a later sync would know nothing of it.
    pub(super) async fn finish(&mut self) -> std::io::Result<()> {
        match self.running.take() {
            Some(running) => running.await.unwrap_or_else(|e| Err(std::io::Error::other(e))),
            None => Ok(()),
        }
    }
}
