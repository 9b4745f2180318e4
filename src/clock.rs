//! Time, randomness and crash points, injected. Nothing else in the crate reads a clock or makes random bytes
//! (the age crate draws its own keys from the operating system).

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use ulid::Ulid;

use crate::error::{Error, Result};

/// The clocks of this host.
#[async_trait]
pub trait Clock: Send + Sync + Debug {
    /// The wall clock, UTC.
    fn now(&self) -> DateTime<Utc>;
    /// A clock that never steps back and goes on while the host is suspended (`CLOCK_BOOTTIME`).
    fn since_boot(&self) -> Duration;
    /// Waits.
    async fn sleep(&self, duration: Duration);
}

/// A source of random bytes.
pub trait Random: Send + Sync + Debug {
    /// Fills the buffer.
    ///
    /// # Errors
    /// The operating system has none.
    fn fill(&self, buffer: &mut [u8]) -> Result<()>;
}

/// Named places where a test lets the process die or an operation fail.
pub trait CrashPoints: Send + Sync + Debug {
    /// Called when the place is reached.
    ///
    /// # Errors
    /// Whatever the test injects; never in production.
    fn reach(&self, name: &'static str) -> Result<()>;
}

/// The real clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
    fn since_boot(&self) -> Duration {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(
            t.tv_sec.try_into().unwrap_or(0),
            t.tv_nsec.try_into().unwrap_or(0),
        )
    }
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// The operating system's randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        getrandom::fill(buffer)
            .map_err(|e| Error::failed("the operating system gives no random bytes").because(e))
    }
}

/// No crash points: production.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCrash;

impl CrashPoints for NoCrash {
    fn reach(&self, _name: &'static str) -> Result<()> {
        Ok(())
    }
}

/// What everything that acts is given: clock, randomness, crash points.
#[derive(Debug, Clone)]
pub struct World {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Where tests let things die.
    pub crash: Arc<dyn CrashPoints>,
}

impl World {
    /// The real one.
    pub fn system() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom),
            crash: Arc::new(NoCrash),
        }
    }
    /// A fresh ULID of the injected clock and randomness.
    ///
    /// # Errors
    /// No randomness.
    pub fn ulid(&self) -> Result<Ulid> {
        let mut bytes = [0u8; 16];
        self.random.fill(&mut bytes)?;
        let ms = u64::try_from(self.clock.now().timestamp_millis()).unwrap_or(0);
        Ok(Ulid::from_parts(ms, u128::from_le_bytes(bytes)))
    }
}
