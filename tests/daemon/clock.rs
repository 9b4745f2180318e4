//! A clock that stands until it is moved.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::clock::Clock;
use tokio::sync::watch;

#[derive(Debug)]
pub struct Hands {
    wall: Mutex<DateTime<Utc>>,
    boot: watch::Sender<Duration>,
}

impl Hands {
    pub fn new(start: DateTime<Utc>) -> Self {
        Self {
            wall: Mutex::new(start),
            boot: watch::Sender::new(Duration::from_secs(100)),
        }
    }
    /// Time goes by.
    pub fn advance(&self, by: TimeDelta) {
        *self.wall.lock().unwrap() += by;
        self.boot.send_modify(|boot| *boot += by.to_std().unwrap());
    }
    /// Somebody sets the wall clock.
    pub fn set(&self, to: DateTime<Utc>) {
        *self.wall.lock().unwrap() = to;
        self.boot.send_modify(|boot| *boot += Duration::from_millis(1));
    }
}

#[async_trait]
impl Clock for Hands {
    fn now(&self) -> DateTime<Utc> {
        *self.wall.lock().unwrap()
    }
    fn since_boot(&self) -> Duration {
        *self.boot.borrow()
    }
    async fn sleep(&self, duration: Duration) {
        let until = self.since_boot().saturating_add(duration);
        // The sender lives as long as the clock that is borrowed here.
        let _ = self.boot.subscribe().wait_for(|boot| *boot >= until).await;
    }
}
