//! Processes that talk over TCP: each with rank 0, which adds up in the order of the ranks.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::{Communicator, DistributedError, Place};

/// First bytes of a connection: the protocol and its version.
const MAGIC: [u8; 8] = *b"CSEGDP01";
/// How long a stranger may keep rank 0 waiting for its first bytes.
const HELLO: Duration = Duration::from_secs(5);
/// Pause between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);
/// Largest message in bytes; the gradients of the largest network are a tenth of it.
const MAX_MESSAGE: u64 = 4 << 30;

/// Connections of one process.
#[derive(Debug)]
pub struct TcpCommunicator {
    rank: usize,
    size: usize,
    /// Rank 0: ranks 1, 2, …; the others: rank 0 alone.
    peers: Vec<TcpStream>,
}

impl TcpCommunicator {
    /// Meets the other processes and waits at most `patience` for them, now and later.
    ///
    /// # Errors
    /// [`DistributedError::Address`], [`DistributedError::Peer`],
    /// [`DistributedError::Disagreement`].
    pub fn connect(place: &Place, patience: Duration) -> Result<Self, DistributedError> {
        let Place { rank, size, .. } = *place;
        let failed = |what| {
            move |source| DistributedError::Address {
                rank,
                what,
                address: place.address.clone(),
                source,
            }
        };
        let peers = if rank == 0 {
            // The name of this host may stand for an address that no interface carries.
            let port = place.address.rsplit(':').next().and_then(|port| port.parse().ok());
            let listener = TcpListener::bind(place.address.as_str())
                .or_else(|error| match port {
                    Some(port) => TcpListener::bind(("0.0.0.0", port)),
                    None => Err(error),
                })
                .map_err(failed("listen at"))?;
            gather_peers(&listener, size, patience, failed("gather the others at"))?
        } else {
            let mut stream = dial(&place.address, patience).map_err(failed("reach rank 0 at"))?;
            let hello = [&MAGIC[..], &pair(rank, size)].concat();
            stream
                .write_all(&hello)
                .map_err(|source| DistributedError::Peer { rank: 0, source })?;
            vec![stream]
        };
        for (i, stream) in peers.iter().enumerate() {
            let rank = if rank == 0 { i + 1 } else { 0 };
            stream
                .set_nodelay(true)
                .and_then(|()| stream.set_read_timeout(Some(patience)))
                .and_then(|()| stream.set_write_timeout(Some(patience)))
                .map_err(|source| DistributedError::Peer { rank, source })?;
        }
        let all = Self { rank, size, peers };
        all.barrier()?;
        Ok(all)
    }

    fn send(&self, peer: usize, bytes: &[u8]) -> Result<(), DistributedError> {
        let mut stream = &self.peers[peer];
        stream
            .write_all(&(bytes.len() as u64).to_le_bytes())
            .and_then(|()| stream.write_all(bytes))
            .map_err(|source| DistributedError::Peer { rank: self.rank_of(peer), source })
    }

    /// A message of `expected` bytes, or of any length.
    fn receive(&self, peer: usize, expected: Option<usize>) -> Result<Vec<u8>, DistributedError> {
        let rank = self.rank_of(peer);
        let gone = |source| DistributedError::Peer { rank, source };
        let mut stream = &self.peers[peer];
        let mut length = [0; 8];
        stream.read_exact(&mut length).map_err(gone)?;
        let length = u64::from_le_bytes(length);
        let differs = expected.is_some_and(|expected| expected as u64 != length);
        if differs || length > MAX_MESSAGE {
            let expected = expected.map_or(format!("at most {MAX_MESSAGE}"), |n| n.to_string());
            let what = format!("sends {length} bytes where {expected} are expected");
            return Err(DistributedError::Disagreement { rank, what });
        }
        // Grows with what arrives, not with what is announced.
        let mut bytes = Vec::new();
        stream.take(length).read_to_end(&mut bytes).map_err(gone)?;
        if bytes.len() as u64 != length {
            return Err(gone(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(bytes)
    }

    fn rank_of(&self, peer: usize) -> usize {
        if self.rank == 0 { peer + 1 } else { 0 }
    }
}

impl Communicator for TcpCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce_sum(&self, flat: &mut Tensor) -> Result<(), DistributedError> {
        let mut values = vec![0f32; flat.numel()];
        flat.to_device(Device::Cpu).to_kind(Kind::Float).copy_data(&mut values, flat.numel());
        if self.rank == 0 {
            for peer in 0..self.peers.len() {
                let bytes = self.receive(peer, Some(4 * values.len()))?;
                for (sum, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *sum += f32::from_le_bytes(*bytes);
                }
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        for peer in 0..self.peers.len() {
            self.send(peer, &bytes)?;
        }
        if self.rank != 0 {
            let bytes = self.receive(0, Some(bytes.len()))?;
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        flat.copy_(&Tensor::from_slice(&values).reshape(flat.size()));
        Ok(())
    }

    fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, DistributedError> {
        if self.rank != 0 {
            self.send(0, own)?;
            return (0..self.size).map(|_| self.receive(0, None)).collect();
        }
        let mut all = vec![own.to_vec()];
        for peer in 0..self.peers.len() {
            all.push(self.receive(peer, None)?);
        }
        for peer in 0..self.peers.len() {
            for bytes in &all {
                self.send(peer, bytes)?;
            }
        }
        Ok(all)
    }
}

/// Two numbers as bytes.
fn pair(rank: usize, size: usize) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(rank as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&(size as u32).to_le_bytes());
    bytes
}

/// Connects to rank 0, which may start later.
fn dial(address: &str, patience: Duration) -> io::Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(error) if begun.elapsed() > patience => return Err(error),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Waits for ranks 1 to `size - 1`; connections of anything else are dropped.
fn gather_peers(
    listener: &TcpListener,
    size: usize,
    patience: Duration,
    failed: impl Fn(io::Error) -> DistributedError,
) -> Result<Vec<TcpStream>, DistributedError> {
    let begun = Instant::now();
    let mut peers: Vec<Option<TcpStream>> = (1..size).map(|_| None).collect();
    listener.set_nonblocking(true).map_err(&failed)?;
    while peers.iter().any(Option::is_none) {
        if begun.elapsed() > patience {
            let missing = peers.iter().filter(|peer| peer.is_none()).count();
            let text = format!("{missing} of {size} processes have not come");
            return Err(failed(io::Error::new(io::ErrorKind::TimedOut, text)));
        }
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(PAUSE);
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        let mut hello = [0; 16];
        let greeted = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(HELLO)))
            .and_then(|()| stream.read_exact(&mut hello));
        if greeted.is_err() || hello[..8] != MAGIC {
            continue;
        }
        let number = |at: usize| {
            u32::from_le_bytes([hello[at], hello[at + 1], hello[at + 2], hello[at + 3]]) as usize
        };
        let (rank, other) = (number(8), number(12));
        if other != size {
            let what = format!("counts {other} processes, rank 0 {size}");
            return Err(DistributedError::Disagreement { rank, what });
        }
        let place = rank.checked_sub(1).and_then(|peer| peers.get_mut(peer));
        if let Some(place @ None) = place {
            *place = Some(stream);
        } else {
            let what = "has come twice or is none of this run".to_owned();
            return Err(DistributedError::Disagreement { rank, what });
        }
    }
    Ok(peers.into_iter().flatten().collect())
}
