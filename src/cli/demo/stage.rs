//! Where the demo plays: a directory of its own, and the commands it runs there.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::cli::Surroundings;
use crate::error::{Context as _, Error, Kind, Result};
use crate::types::{hex, quoted};

/// What a child may say; more is cut off.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// How long an interrupted child may take to end.
const END: Duration = Duration::from_secs(10);

/// The demo's directory, removed in the end.
struct Home {
    path: PathBuf,
    keep: bool,
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.keep {
            // On the way of success `Stage::clear` has removed it already and told of errors.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The stage.
pub struct Stage<'a> {
    /// What every command is given.
    pub surroundings: &'a Surroundings,
    home: Home,
    program: PathBuf,
    variables: Vec<(&'static str, String)>,
}

impl<'a> Stage<'a> {
    /// Makes the directory.
    ///
    /// # Errors
    /// It can not be made.
    pub fn new(surroundings: &'a Surroundings, keep: bool) -> Result<Self> {
        let program = std::env::current_exe().doing(|| "the path of this program can not be found")?;
        let mut bytes = [0; 4];
        surroundings.world.random.fill(&mut bytes)?;
        let path = std::env::temp_dir().join(format!("lifeboat-demo-{}", hex(&bytes)));
        // Another user's PostgreSQL goes through it, so it can be passed but not listed by others.
        DirBuilder::new()
            .mode(0o711)
            .create(&path)
            .doing(|| format!("can not make {}", path.display()))?;
        Ok(Self {
            surroundings,
            home: Home { path, keep },
            program,
            variables: Vec::new(),
        })
    }
    /// The directory.
    pub fn root(&self) -> &Path {
        &self.home.path
    }
    /// Gives the commands that follow a variable: variables go this way.
    pub fn variable(&mut self, name: &'static str, value: String) {
        self.variables.push((name, value));
    }
    /// Says something.
    ///
    /// # Errors
    /// Standard output can not be written.
    pub fn say(&self, text: &str) -> Result<()> {
        self.surroundings.printer.text(&format!("{text}\n"))
    }
    /// Says what comes next.
    ///
    /// # Errors
    /// As [`Self::say`].
    pub fn chapter(&self, text: &str) -> Result<()> {
        self.say(&format!("\n── {text}\n"))
    }
    /// Removes the directory, or says where it is.
    ///
    /// # Errors
    /// It can not be removed.
    pub fn clear(self) -> Result<()> {
        if self.home.keep {
            return self.say(&format!("kept: {}", self.root().display()));
        }
        fs::remove_dir_all(self.root()).doing(|| format!("can not remove {}", self.root().display()))
    }
    /// Waits, unless interrupted.
    ///
    /// # Errors
    /// Interrupted.
    pub async fn wait(&self, time: Duration) -> Result<()> {
        tokio::select! {
            biased;
            () = self.surroundings.cancel.cancelled() => Err(interrupted()),
            () = self.surroundings.world.clock.sleep(time) => Ok(()),
        }
    }

    /// Runs this very program, showing command and output; gives its output.
    ///
    /// # Errors
    /// It fails: then the demo has failed.
    pub async fn backup(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(args);
        // The demo's own settings alone: not the operator's policy, nor his state.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LIFEBOAT_") {
                command.env_remove(&name);
            }
        }
        command.env("LIFEBOAT_POLICY", "policy.toml");
        self.shown("backup", args, command).await
    }

    /// Runs another program, showing command and output; gives its output.
    ///
    /// # Errors
    /// As [`Self::backup`].
    pub async fn other(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(args);
        self.shown(program, args, command).await
    }

    async fn shown(&self, name: &str, args: &[&str], mut command: Command) -> Result<String> {
        let line: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
        self.say(&format!("$ {name} {}", line.join(" ")))?;
        command
            .envs(self.variables.iter().map(|(name, value)| (*name, value.as_str())))
            .stderr(Stdio::inherit());
        let (ok, output, _) = self.run(command).await?;
        self.say(&output)?;
        if !ok {
            return Err(Error::failed(format!("`{name} {}` failed", line.join(" "))));
        }
        Ok(output)
    }

    /// Runs a program without showing it; gives its output.
    ///
    /// # Errors
    /// It fails, with its last words.
    pub async fn quietly(&self, mut command: Command) -> Result<String> {
        command.stderr(Stdio::piped());
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let (ok, output, error) = self.run(command).await?;
        if !ok {
            let last: Vec<&str> = error.lines().rev().take(3).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            return Err(Error::failed(format!("{name} failed: {}", last.join("; "))));
        }
        Ok(output)
    }

    /// Whether it succeeded, standard output, standard error where piped.
    async fn run(&self, mut command: Command) -> Result<(bool, String, String)> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let what = || format!("can not run {name}");
        if command.as_std().get_current_dir().is_none() {
            command.current_dir(self.root());
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .doing(what)?;
        let out = child.stdout.take();
        let err = child.stderr.take();
        let work = async {
            let (out, err) = tokio::try_join!(read(out), read(err))?;
            let status = child.wait().await?;
            std::io::Result::Ok((status.success(), out, err))
        };
        let done = tokio::select! {
            biased;
            () = self.surroundings.cancel.cancelled() => None,
            done = work => Some(done.doing(what)?),
        };
        match done {
            Some(done) => Ok(done),
            None => {
                end(&mut child, &self.surroundings.world).await;
                Err(interrupted())
            }
        }
    }
}

/// Asks a child to end; dropped, it is killed.
async fn end(child: &mut Child, world: &crate::clock::World) {
    if let Some(pid) = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
    {
        // It can have ended just now; the wait tells.
        let _ = kill_process(pid, Signal::TERM);
    }
    tokio::select! {
        _ = child.wait() => {}
        () = world.clock.sleep(END) => {}
    }
}

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted")
}

async fn read(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<String> {
    let Some(mut pipe) = pipe else {
        return Ok(String::new());
    };
    let mut bytes = Vec::new();
    (&mut pipe).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await?;
    // To its end, or the child would wait for ever for room.
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
