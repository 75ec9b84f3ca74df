//! The systems that are compared: which program, how it is started for one core and without
//! persistence, how it is stopped.

use anyhow::{Context, Result, bail};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long a server may take to listen, and to end when it is told to.
const PATIENCE: Duration = Duration::from_secs(20);

/// A system that can be measured.
#[derive(Debug)]
pub(super) struct System {
    pub name: &'static str,
    pub program: &'static str,
    /// What the tester speaks to it, without and with acknowledgements of each message.
    pub protocol: &'static str,
    pub acknowledged: Option<&'static str>,
    /// Why the tester cannot drive it even where it is installed.
    pub unspoken: Option<&'static str>,
    version_flag: &'static str,
    /// Arguments, and a file that they name.
    arguments: fn(&Place<'_>) -> Vec<String>,
    configuration: Option<fn(&Place<'_>) -> String>,
    /// It is built from this repository.
    ours: bool,
}

/// Where a server is to listen and to keep its files.
struct Place<'a> {
    port: u16,
    /// For what listens on a second one.
    other_port: u16,
    cpu: usize,
    folder: &'a Path,
}

impl Place<'_> {
    fn file(&self) -> String {
        self.folder.join("server.conf").display().to_string()
    }
}

fn words(line: String) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn named_file(flag: &str, place: &Place<'_>) -> Vec<String> {
    vec![flag.to_owned(), place.file()]
}

/// In the order of the columns.
pub(super) const SYSTEMS: &[System] = &[
    System {
        name: "floor",
        program: "portico-loadgen",
        protocol: "relay",
        acknowledged: None,
        unspoken: None,
        version_flag: "--version",
        arguments: |place| {
            words(format!(
                "floor --until-eof --listen 127.0.0.1:{}",
                place.port
            ))
        },
        configuration: None,
        ours: true,
    },
    System {
        name: "portico",
        program: "portico",
        protocol: "portico",
        acknowledged: Some("portico"),
        unspoken: None,
        version_flag: "version",
        arguments: |place| {
            let mut arguments = words(format!(
                "serve --backend memory --shards 1 --cpus {} --listen 127.0.0.1:{} \
                 --admin 127.0.0.1:{} --data",
                place.cpu, place.port, place.other_port
            ));
            arguments.push(place.folder.display().to_string());
            arguments
        },
        configuration: None,
        ours: true,
    },
    System {
        name: "mosquitto",
        program: "mosquitto",
        protocol: "mqtt-qos0",
        acknowledged: Some("mqtt-qos1"),
        unspoken: None,
        version_flag: "-h",
        arguments: |place| named_file("-c", place),
        configuration: Some(|place| {
            format!(
                "listener {} 127.0.0.1\nallow_anonymous true\nlog_type none\npersistence false\n\
                 set_tcp_nodelay true\nmax_inflight_messages 0\nmax_queued_messages 0\n",
                place.port
            )
        }),
        ours: false,
    },
    System {
        name: "nats",
        program: "nats-server",
        protocol: "nats",
        acknowledged: None,
        unspoken: None,
        version_flag: "-v",
        arguments: |place| words(format!("-a 127.0.0.1 -p {}", place.port)),
        configuration: None,
        ours: false,
    },
    System {
        name: "redis",
        program: "redis-server",
        protocol: "redis",
        acknowledged: None,
        unspoken: None,
        version_flag: "--version",
        arguments: |place| named_file("", place)[1..].to_vec(),
        configuration: Some(|place| {
            format!(
                "bind 127.0.0.1\nport {}\nsave \"\"\nappendonly no\nmaxclients 30000\n\
                 tcp-backlog 4096\nprotected-mode no\n\
                 client-output-buffer-limit pubsub 0 0 0\n",
                place.port
            )
        }),
        ours: false,
    },
    System {
        name: "flashmq",
        program: "flashmq",
        protocol: "mqtt-qos0",
        acknowledged: Some("mqtt-qos1"),
        unspoken: None,
        version_flag: "--version",
        arguments: |place| named_file("-c", place),
        configuration: Some(|place| {
            format!(
                "thread_count 1\nallow_anonymous true\nlog_level error\nlog_file flashmq.log\n\
                 storage_dir {}\nrlimit_nofile 100000\nmax_qos_msg_pending_per_client 65535\n\
                 listen {{\n    protocol mqtt\n    inet_protocol ip4\n    \
                 inet4_bind_address 127.0.0.1\n    port {}\n}}\n",
                place.folder.display(),
                place.port
            )
        }),
        ours: false,
    },
    System {
        name: "rumqttd",
        program: "rumqttd",
        protocol: "mqtt-qos0",
        acknowledged: Some("mqtt-qos1"),
        unspoken: None,
        version_flag: "--version",
        arguments: |place| {
            let mut arguments = named_file("-c", place);
            arguments.push("-q".to_owned());
            arguments
        },
        configuration: Some(|place| {
            format!(
                "id = 0\n[router]\nid = 0\nmax_connections = 20010\n\
                 max_outgoing_packet_count = 200\nmax_segment_size = 104857600\n\
                 max_segment_count = 10\n[v4.1]\nname = \"v4-1\"\n\
                 listen = \"127.0.0.1:{}\"\nnext_connection_delay_ms = 0\n\
                 [v4.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = 20480\n\
                 max_inflight_count = 100\ndynamic_filters = true\n",
                place.port
            )
        }),
        ours: false,
    },
    System {
        name: "ejabberd",
        program: "ejabberdctl",
        protocol: "xmpp",
        acknowledged: None,
        unspoken: Some("the tester does not speak XMPP"),
        version_flag: "--version",
        arguments: |_| Vec::new(),
        configuration: None,
        ours: false,
    },
];

impl System {
    pub(super) fn is_floor(&self) -> bool {
        self.name == "floor"
    }

    fn command(&self, bin: &Path) -> Command {
        match self.ours {
            true => Command::new(bin.join(self.program)),
            false => Command::new(self.program),
        }
    }

    /// `None` when it is not installed.
    pub(super) fn version(&self, bin: &Path) -> Option<String> {
        let mut command = self.command(bin);
        command.arg(self.version_flag).stdin(Stdio::null());
        // Some say it on standard error, and some call that a failure.
        let output = command.output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        Some(version_in(&String::from_utf8_lossy(&said)).unwrap_or_else(|| "unknown".to_owned()))
    }
}

/// The first thing that looks like `1.2.3`.
fn version_in(text: &str) -> Option<String> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .find(|part| {
            let numbers: Vec<_> = part.split('.').collect();
            numbers.len() >= 2 && numbers.iter().all(|number| !number.is_empty())
        })
        .map(str::to_owned)
}

/// A running server, stopped when it is dropped.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Server {
    /// Starts it on `cpu` and waits until it listens.
    pub(super) fn start(system: &System, bin: &Path, cpu: usize) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("portico-peers-")
            .tempdir()?;
        let [port, other_port] = free_ports().context("there is no free port")?;
        let place = Place {
            port,
            other_port,
            cpu,
            folder: folder.path(),
        };
        if let Some(configuration) = system.configuration {
            fs::write(place.file(), configuration(&place))?;
        }
        let output = File::create(folder.path().join("output"))?;
        let mut command = system.command(bin);
        command
            .args((system.arguments)(&place))
            .current_dir(folder.path())
            // Open for as long as the server lives: the floor ends with it.
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = pinned(cpu, || command.spawn())?;
        let child = child.with_context(|| format!("{} does not start", system.program))?;
        let mut server = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            folder,
        };
        server.wait_until_it_listens(system)?;
        Ok(server)
    }

    fn wait_until_it_listens(&mut self, system: &System) -> Result<()> {
        let begun = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended with {status}: {}",
                    system.program,
                    self.last_words()
                );
            }
            if begun.elapsed() > PATIENCE {
                bail!("{} does not listen: {}", system.program, self.last_words());
            }
            thread::sleep(Duration::from_millis(50));
        }
        // What it still does to get ready belongs to nobody.
        thread::sleep(Duration::from_millis(500));
        Ok(())
    }

    /// The end of what it printed.
    fn last_words(&self) -> String {
        const BYTES: u64 = 500;
        let read = || {
            let mut file = File::open(self.folder.path().join("output"))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            Ok::<_, io::Error>(text)
        };
        let text = read().unwrap_or_default();
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its own, which the tester may use too.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Server {
    /// Asks it to end, by its own id, and insists when it does not.
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

/// Two that differ.
fn free_ports() -> io::Result<[u16; 2]> {
    let listeners = [
        TcpListener::bind("127.0.0.1:0")?,
        TcpListener::bind("127.0.0.1:0")?,
    ];
    let [one, other] = &listeners;
    Ok([one.local_addr()?.port(), other.local_addr()?.port()])
}

/// Children inherit the processors of the thread that starts them.
fn pinned<T>(cpu: usize, start: impl FnOnce() -> T) -> Result<T> {
    let ours = sched_getaffinity(None)?;
    let mut set = CpuSet::new();
    anyhow::ensure!(cpu < CpuSet::MAX_CPU, "--server-cpu {cpu} is no processor");
    set.set(cpu);
    sched_setaffinity(None, &set)
        .with_context(|| format!("cannot run on processor {cpu} (see --server-cpu)"))?;
    let started = start();
    sched_setaffinity(None, &ours)?;
    Ok(started)
}

/// For the servers, which inherit it.
pub(super) fn raise_open_file_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, version) in [
            (
                "mosquitto version 2.0.11\n\nmosquitto is an MQTT broker",
                "2.0.11",
            ),
            ("nats-server: v2.9.10", "2.9.10"),
            (
                "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64",
                "7.0.15",
            ),
            ("portico 0.1.0 (commit unknown, protocol 1)", "0.1.0"),
        ] {
            assert_eq!(version_in(text).as_deref(), Some(version));
        }
        assert_eq!(version_in("no such thing."), None);
    }

    #[test]
    fn configurations_name_their_port_and_nothing_else_listens() {
        let place = Place {
            port: 40_001,
            other_port: 40_002,
            cpu: 0,
            folder: Path::new("folder"),
        };
        for system in SYSTEMS.iter().filter(|system| system.unspoken.is_none()) {
            let mut text = (system.arguments)(&place).join(" ");
            if let Some(configuration) = system.configuration {
                text += &configuration(&place);
            }
            assert!(text.contains("40001"), "{}: {text}", system.name);
            assert!(text.contains("127.0.0.1"), "{}: {text}", system.name);
        }
    }

    /// With a stand-in that every machine has.
    #[test]
    fn a_program_that_ends_at_once_is_reported_with_its_last_words() {
        let system = System {
            program: "sh",
            arguments: |_| vec!["-c".to_owned(), "echo no licence; exit 3".to_owned()],
            configuration: None,
            ours: false,
            name: "stand-in",
            protocol: "none",
            acknowledged: None,
            unspoken: None,
            version_flag: "--version",
        };
        let cpu = (0..CpuSet::MAX_CPU)
            .find(|cpu| sched_getaffinity(None).is_ok_and(|set| set.is_set(*cpu)))
            .expect("this runs somewhere");
        let error = Server::start(&system, Path::new(""), cpu).expect_err("it ended");
        let message = error.to_string();
        assert!(
            message.contains("no licence") && message.contains('3'),
            "{message}"
        );
    }
}
