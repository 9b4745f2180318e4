//! Reads small files ahead: storage/ may hold many thousands, and a change of threads for each would cost more than the
//! reading.

use std::collections::VecDeque;
use std::io::Read as _;
use std::path::PathBuf;

/// What is larger is read by itself.
pub const SMALL: u64 = 256 << 10;
/// The most content read ahead, bytes.
const AHEAD_BYTES: u64 = 4 << 20;
/// The most files read ahead.
const AHEAD_FILES: usize = 256;

/// Files read before they are asked for, in order.
#[derive(Default)]
pub struct Ahead {
    read: VecDeque<(PathBuf, std::io::Result<Option<Vec<u8>>>)>,
    /// How many were asked for one after another: who leaves out most of them gets none in vain.
    in_a_row: usize,
}

impl Ahead {
    /// A unit was passed over, or is not a small file.
    pub fn passed(&mut self) {
        self.in_a_row = 0;
    }

    /// The content of a small file, `None` if it is small no more; `next` gives the small files that may be asked for after it, with their sizes.
    ///
    /// # Errors
    /// It can not be read.
    pub async fn take<'a>(
        &mut self,
        path: PathBuf,
        next: impl Iterator<Item = (&'a PathBuf, u64)>,
    ) -> std::io::Result<Option<Vec<u8>>> {
        while let Some((read, content)) = self.read.pop_front() {
            if read == path {
                self.in_a_row += 1;
                return content;
            }
        }
        let mut wanted = vec![path];
        let mut bytes = 0;
        for (path, size) in next.take(self.in_a_row.min(AHEAD_FILES)) {
            bytes += size;
            if bytes > AHEAD_BYTES {
                break;
            }
            wanted.push(path.clone());
        }
        self.in_a_row += 1;
        let read = tokio::task::spawn_blocking(move || {
            let read = wanted.into_iter().map(|path| {
                let content = read_small(&path);
                (path, content)
            });
            read.collect::<VecDeque<_>>()
        });
        self.read = read.await.map_err(std::io::Error::other)?;
        match self.read.pop_front() {
            Some((_, content)) => content,
            None => Err(std::io::Error::other("nothing was read")),
        }
    }
}

/// A file may have grown since it was listed: never more than a small one.
fn read_small(path: &PathBuf) -> std::io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    let length = std::fs::File::open(path)?
        .take(SMALL + 1)
        .read_to_end(&mut content)?;
    Ok(Some(content).filter(|_| length as u64 <= SMALL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_come_in_order_whichever_are_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = (0..40)
            .map(|n| directory.path().join(format!("{n:02}")))
            .collect();
        for (n, file) in files.iter().enumerate() {
            std::fs::write(file, vec![n as u8; n]).unwrap();
        }
        for step in [1, 2, 7] {
            let mut ahead = Ahead::default();
            for n in 0..files.len() {
                if n % step != 0 {
                    ahead.passed();
                    continue;
                }
                let next = files[n + 1..].iter().map(|f| (f, 1));
                let content = ahead.take(files[n].clone(), next).await.unwrap();
                assert_eq!(content, Some(vec![n as u8; n]));
                assert!(ahead.read.len() <= n + 1);
            }
        }
        let mut ahead = Ahead::default();
        std::fs::remove_file(&files[1]).unwrap();
        ahead.in_a_row = 5;
        let next = |n: usize| files[n + 1..].iter().map(|f| (f, 1));
        ahead.take(files[0].clone(), next(0)).await.unwrap();
        assert!(ahead.take(files[1].clone(), next(1)).await.is_err());
        let third = ahead.take(files[2].clone(), next(2)).await.unwrap();
        assert_eq!(third, Some(vec![2, 2]));
        std::fs::write(&files[1], vec![0; SMALL as usize + 1]).unwrap();
        let grown = Ahead::default().take(files[1].clone(), next(1)).await.unwrap();
        assert_eq!(grown, None, "not cut short in silence");
    }
}
