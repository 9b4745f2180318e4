//! A backup on a PocketBase server, read by ranges as if it were a file.

use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::runtime::Handle;

use super::remote::{Remote, unreachable};
use crate::clock::World;
use crate::error::{Error, Kind, Result};
use crate::secret::SecretText;

/// What one ranged read asks for.
const AHEAD: u64 = 4 << 20;
/// File tokens live for two minutes or more; they are renewed sooner.
const TOKEN_AGE: Duration = Duration::from_secs(60);
/// Reads a backup by ranges.
pub struct Ranged {
    remote: Remote,
    world: World,
    name: String,
    runtime: Handle,
    size: u64,
    at: u64,
    token: Option<(SecretText, Duration)>,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl Ranged {
    /// Finds the backup's size.
    ///
    /// # Errors
    /// The server does not list it.
    pub async fn open(remote: Remote, world: World, name: String) -> Result<Self> {
        let token = remote.log_in().await?;
        let answer = remote
            .call(Method::GET, "/api/backups", &token, None, None)
            .await?;
        let list: Value = answer
            .json()
            .await
            .map_err(|e| unreachable("listing backups", e))?;
        let size = list
            .as_array()
            .into_iter()
            .flatten()
            .find(|b| b["key"] == name.as_str())
            .and_then(|b| b["size"].as_u64())
            .ok_or_else(|| Error::failed("PocketBase does not list the backup it made"))?;
        Ok(Self {
            remote,
            world,
            name,
            runtime: Handle::current(),
            size,
            at: 0,
            token: None,
            buffer: Vec::new(),
            buffer_at: 0,
        })
    }

    async fn fetch(&mut self, from: u64) -> Result<()> {
        let now = self.world.clock.since_boot();
        let token = match &self.token {
            Some((token, made)) if now.saturating_sub(*made) < TOKEN_AGE => token.clone(),
            _ => {
                let login = self.remote.log_in().await?;
                let answer = self
                    .remote
                    .call(Method::POST, "/api/files/token", &login, None, None)
                    .await?;
                let value: Value = answer.json().await.map_err(|e| unreachable("a file token", e))?;
                let token = SecretText::new(value["token"].as_str().unwrap_or_default().to_owned());
                self.token = Some((token.clone(), now));
                token
            }
        };
        let to = (from + AHEAD).min(self.size);
        let answer = self
            .remote
            .client
            .get(format!("{}/api/backups/{}", self.remote.base, self.name))
            .query(&[("token", token.expose())])
            .header("Range", format!("bytes={from}-{}", to - 1))
            .send()
            .await
            .map_err(|e| unreachable("reading the backup", e))?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(Error::new(
                Kind::Failed,
                format!(
                    "PocketBase answered {} to a ranged read of its backup",
                    answer.status()
                ),
            ));
        }
        let bytes = answer
            .bytes()
            .await
            .map_err(|e| unreachable("reading the backup", e))?;
        if bytes.len() as u64 != to - from {
            return Err(Error::failed("PocketBase's backup was cut short"));
        }
        self.buffer = bytes.to_vec();
        self.buffer_at = from;
        Ok(())
    }
}

impl Read for Ranged {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.at >= self.size || out.is_empty() {
            return Ok(0);
        }
        let end = self.buffer_at + self.buffer.len() as u64;
        if self.at < self.buffer_at || self.at >= end {
            let (runtime, from) = (self.runtime.clone(), self.at);
            runtime
                .block_on(self.fetch(from))
                .map_err(std::io::Error::other)?;
        }
        let from = (self.at - self.buffer_at) as usize;
        let length = out.len().min(self.buffer.len() - from);
        out[..length].copy_from_slice(&self.buffer[from..from + length]);
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Ranged {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => i128::from(at),
            SeekFrom::End(by) => i128::from(self.size) + i128::from(by),
            SeekFrom::Current(by) => i128::from(self.at) + i128::from(by),
        };
        self.at =
            u64::try_from(target).map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
