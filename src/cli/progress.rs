//! Progress on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::text::clean;
use crate::progress::Progress;

/// One line on standard error that shows what is going on; hidden when that is no terminal.
#[derive(Clone, Debug)]
pub struct Bars {
    bar: ProgressBar,
    shown: bool,
}

impl Bars {
    /// Shown or not.
    pub fn new(shown: bool) -> Self {
        // Drawn from the first phase on: a command that ends at once shows nothing.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { bar, shown }
    }
    /// Takes the line away while something else is written.
    pub fn suspend<R>(&self, write: impl FnOnce() -> R) -> R {
        self.bar.suspend(write)
    }
    /// The end: the line goes away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bars {
    fn phase(&self, name: &str, total_bytes: Option<u64>) {
        tracing::info!(bytes = total_bytes, "{}", clean(name));
        if !self.shown {
            return;
        }
        if self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(8));
            self.bar.enable_steady_tick(Duration::from_millis(250));
        }
        let template = match total_bytes {
            Some(_) => {
                "{spinner} {wide_msg} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}"
            }
            None => "{spinner} {wide_msg} {binary_bytes} {binary_bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        // First, so that no bytes of the phase before stand over the total of this one.
        self.bar.set_position(0);
        match total_bytes {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
        self.bar.set_message(clean(name).into_owned());
        self.bar.reset_eta();
    }
    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    use super::*;

    /// A terminal that keeps what is drawn.
    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<String>>);

    impl TermLike for Kept {
        fn width(&self) -> u16 {
            120
        }
        fn move_cursor_up(&self, _n: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _n: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _n: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _n: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, s: &str) -> io::Result<()> {
            self.write_str(s)
        }
        fn write_str(&self, s: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(s);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_bytes_of_one_phase_stand_over_the_total_of_the_next() {
        let kept = Kept::default();
        let target = ProgressDrawTarget::term_like(Box::new(kept.clone()));
        let bars = Bars {
            bar: ProgressBar::with_draw_target(None, target),
            shown: true,
        };
        bars.phase("one", Some(100));
        bars.advance(80);
        bars.phase("two", Some(50));
        let drawn = kept.0.lock().unwrap().clone();
        assert!(drawn.contains("two") && drawn.contains("0 B/50 B"), "{drawn}");
        assert!(!drawn.contains("80 B/50 B"), "{drawn}");
        bars.finish();
    }
}
