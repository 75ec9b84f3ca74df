//! The servers: started on processors of their own, accounted, and stopped.

use super::Fault;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(10);

/// A running server, which ends when this is dropped.
pub(crate) struct Server {
    child: Child,
    /// Open for as long as the server may write to it.
    _output: BufReader<ChildStdout>,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    folder: TempDir,
}

impl Server {
    /// The relay that copies bytes and looks at none.
    pub(crate) fn floor(loadgen: &Path, cpus: &[usize]) -> Result<Self, Fault> {
        let mut command = Command::new(loadgen);
        command.args(["floor", "--listen", "127.0.0.1:0", "--until-eof"]);
        Self::start("floor", command, TempDir::new()?, cpus)
    }

    /// A gateway whose store is in memory.
    pub(crate) fn gateway(portico: &Path, shards: usize, cpus: &[usize]) -> Result<Self, Fault> {
        let folder = TempDir::new()?;
        let mut command = Command::new(portico);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--backend", "memory", "--shards", &shards.to_string()])
            .arg("--data")
            .arg(folder.path());
        Self::start(&portico.display().to_string(), command, folder, cpus)
    }

    fn start(
        name: &str,
        mut command: Command,
        folder: TempDir,
        cpus: &[usize],
    ) -> Result<Self, Fault> {
        let log = File::create(folder.path().join("log"))?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        // Children inherit the processors of the thread that starts them.
        pin(cpus)?;
        let mut child = command
            .spawn()
            .map_err(|error| format!("{name} does not start: {error}"))?;
        let output = child.stdout.take().ok_or("no output")?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line)?;
        // `ready listen=ADDR ...` of a gateway, `listening on ADDR` of the floor.
        let address = line.split_whitespace().find_map(|word| {
            word.strip_prefix("listen=")
                .unwrap_or(word)
                .parse::<SocketAddr>()
                .ok()
        });
        let Some(address) = address else {
            let log = fs::read_to_string(folder.path().join("log"))?;
            return Err(format!("{name} is not ready: {line}{log}").into());
        };
        Ok(Self {
            child,
            _output: output,
            name: name.to_owned(),
            address,
            folder,
        })
    }

    /// Where a gateway keeps the key that its clients' tokens are signed with.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Time on a processor so far, of all threads together.
    pub(crate) fn cpu_us(&self) -> Result<f64, Fault> {
        let mut sum_ns = 0.0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let on_cpu_ns = text.split(' ').next().unwrap_or_default();
            sum_ns += on_cpu_ns.parse::<f64>()?;
        }
        Ok(sum_ns / 1e3)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(20)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// From now on this thread, and what it starts, runs there.
pub(crate) fn pin(cpus: &[usize]) -> Result<(), Fault> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    sched_setaffinity(None, &set).map_err(|error| format!("processors {cpus:?}: {error}").into())
}
