//! A proxy that drops, repeats, swaps and changes whole frames on their way, to prove that the tool
//! notices just that. It stands before a sink or a gateway and knows frames, not sessions.
//!
//! Two threads per connection; everything ends with the connection, at the latest with the process.

use portico_wire::{Op, limits::FRAME_BYTES_DEFAULT_MAX, next_frame};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

/// What happens to every fourth frame of a kind on each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// SEND, DELIVER, SENT do not arrive.
    DropMessage,
    DropDelivery,
    DropAnswer,
    /// DELIVER comes twice, the second time at the next place of the inbox.
    Repeat,
    /// The same, and under another id.
    Double,
    /// DELIVER comes twice, byte for byte.
    RepeatAsIs,
    /// DELIVER and its successor change places; those of the inbox stay ascending.
    Swap,
    /// One bit of the body of DELIVER is another.
    Corrupt,
}

impl Fault {
    /// The kind of frame, and whether it is on its way to the server.
    const fn at(self) -> Option<(Op, bool)> {
        match self {
            Self::None => None,
            Self::DropMessage => Some((Op::Send, true)),
            Self::DropAnswer => Some((Op::Sent, false)),
            Self::DropDelivery
            | Self::Repeat
            | Self::Double
            | Self::RepeatAsIs
            | Self::Swap
            | Self::Corrupt => Some((Op::Deliver, false)),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
}

impl Proxy {
    pub(crate) fn start(server: SocketAddr, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(server) else {
                    continue;
                };
                for (from, to, up) in [(&client, &server, true), (&server, &client, false)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
                        continue;
                    };
                    let _ = to.set_nodelay(true);
                    let way = Way {
                        fault: fault
                            .at()
                            .filter(|(_, wanted)| *wanted == up)
                            .map(|(op, _)| (fault, op)),
                        seen: 0,
                        held: None,
                    };
                    thread::spawn(move || way.pass(from, to));
                }
            }
        });
        Self { address }
    }
}

/// One direction of a connection.
struct Way {
    fault: Option<(Fault, Op)>,
    /// Frames of the kind so far.
    seen: u64,
    /// Kept back until the next one.
    held: Option<Vec<u8>>,
}

const SEQ: std::ops::Range<usize> = 16..24;
/// The low half of the message's id.
const ID_AT: usize = 32;

impl Way {
    fn pass(mut self, mut from: TcpStream, mut to: TcpStream) {
        let mut input = Vec::new();
        let mut chunk = vec![0; 65_536];
        while let Ok(bytes @ 1..) = from.read(&mut chunk) {
            input.extend_from_slice(&chunk[..bytes]);
            let mut out = Vec::new();
            let mut used = 0;
            while let Ok(Some(frame)) = next_frame(&input[used..], FRAME_BYTES_DEFAULT_MAX) {
                used += frame.bytes().len();
                self.frame(frame.known_op(), frame.bytes(), &mut out);
            }
            input.drain(..used);
            if to.write_all(&out).is_err() {
                break;
            }
        }
        // The other direction hears of the end as well.
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }

    fn frame(&mut self, op: Option<Op>, frame: &[u8], out: &mut Vec<u8>) {
        let Some((fault, _)) = self.fault.filter(|(_, kind)| Some(*kind) == op) else {
            out.extend_from_slice(frame);
            return;
        };
        let chosen = self.seen % 4 == 1;
        self.seen += 1;
        if let Some(mut earlier) = self.held.take() {
            let mut frame = frame.to_vec();
            earlier[SEQ].swap_with_slice(&mut frame[SEQ]);
            out.extend_from_slice(&frame);
            out.extend_from_slice(&earlier);
            return;
        }
        let mut changed = frame.to_vec();
        match fault {
            Fault::DropMessage | Fault::DropDelivery | Fault::DropAnswer if chosen => return,
            Fault::Swap if chosen => {
                self.held = Some(changed);
                return;
            }
            Fault::Repeat | Fault::Double if chosen => {
                out.extend_from_slice(frame);
                // Places are further apart than this.
                let place = changed[SEQ].try_into().map_or(0, u64::from_le_bytes);
                changed[SEQ].copy_from_slice(&(place + 1).to_le_bytes());
                if fault == Fault::Double {
                    changed[ID_AT + 5] ^= 1;
                }
            }
            Fault::RepeatAsIs if chosen => out.extend_from_slice(frame),
            Fault::Corrupt if chosen => {
                // Inside the payload, so that the Envelope around it stays readable.
                let payload = changed.windows(4).position(|bytes| bytes == b"PTLG");
                changed[payload.expect("a message of the tool") + 60] ^= 1;
            }
            _ => {}
        }
        out.extend_from_slice(&changed);
    }
}
