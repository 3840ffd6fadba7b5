//! Single questions to the servers of [`crate::server`]: who answers at this address?

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use crate::server::{ECHO, SEEN_AS};

/// Transport protocol of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Asks the server at `addr` for its name, with a connection or a socket of its own. UDP is asked over a connected
/// socket, so that a refusal is heard.
pub fn ask(transport: Transport, addr: SocketAddr, timeout: Duration) -> io::Result<String> {
    match transport {
        Transport::Tcp => Connection::open(addr, timeout)?.ask(),
        Transport::Udp => {
            let socket = udp_socket(addr, timeout)?;
            socket.connect(addr)?;
            ask_connected(&socket)
        }
    }
}

/// Asks the server at `addr` which client address and port it sees.
pub fn seen_as(
    transport: Transport,
    addr: SocketAddr,
    timeout: Duration,
) -> io::Result<SocketAddr> {
    let answer = match transport {
        Transport::Tcp => {
            let mut connection = Connection::open(addr, timeout)?;
            connection.reader.get_mut().write_all(SEEN_AS)?;
            let mut line = String::new();
            connection.reader.read_line(&mut line)?;
            line
        }
        Transport::Udp => {
            let socket = udp_socket(addr, timeout)?;
            socket.connect(addr)?;
            socket.send(SEEN_AS)?;
            let mut answer = [0; 256];
            let n = socket.recv(&mut answer)?;
            name_in(answer.get(..n).unwrap_or_default())
        }
    };
    let answered = answer.trim_end().parse();
    answered.map_err(|err| io::Error::other(format!("{addr} answered {answer:?}: {err}")))
}

/// An open TCP connection to a server.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; `timeout` also limits each answer.
    pub fn open(addr: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + timeout;
        let stream = loop {
            match TcpStream::connect_timeout(&addr, timeout) {
                // Where a namespace has few source ports: a child just being started elsewhere in this process may
                // hold a copy of a closed socket until its exec.
                Err(err)
                    if err.kind() == io::ErrorKind::AddrNotAvailable
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(2));
                }
                other => break other?,
            }
        };
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Limits each answer from now on.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.reader.get_ref().set_read_timeout(Some(timeout))
    }

    /// Asks for the server's name over this connection.
    pub fn ask(&mut self) -> io::Result<String> {
        self.reader.get_mut().write_all(b"?\n")?;
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Ends the connection by a reset instead of an orderly close.
    pub fn reset(self) -> io::Result<()> {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        Ok(setsockopt(&self.reader.get_ref().as_fd(), sockopt::Linger, &linger)?)
    }

    /// Its own address and port.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.reader.get_ref().local_addr()
    }

    /// The address the socket believes it talks to.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.reader.get_ref().peer_addr()
    }
}

/// Like [`ask`] over TCP, but ends the connection by a reset: its source port is free again at once.
pub fn ask_and_reset(addr: SocketAddr, timeout: Duration) -> io::Result<String> {
    let mut connection = Connection::open(addr, timeout)?;
    let name = connection.ask()?;
    connection.reset()?;
    Ok(name)
}

/// Sends `n` bytes to an echoing server while it reads them back; an error if they come back different.
pub fn echo(addr: SocketAddr, n: usize, timeout: Duration) -> io::Result<()> {
    let sent: Vec<u8> = (0..n).map(|i| (i % 251) as u8).collect();
    let mut stream = TcpStream::connect_timeout(&addr, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut writer = stream.try_clone()?;
    let mut received = vec![0; n];
    std::thread::scope(|scope| {
        let write = scope.spawn(|| writer.write_all(&sent));
        let read = stream.read_exact(&mut received);
        let write = write.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        read.and(write)
    })?;
    if received == sent { Ok(()) } else { Err(io::Error::other("the bytes came back changed")) }
}

/// A UDP socket of `addr`'s family with a limit on each wait.
pub fn udp_socket(addr: SocketAddr, timeout: Duration) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(timeout))?;
    Ok(socket)
}

/// Asks for the server's name over a connected UDP socket.
pub fn ask_connected(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"?\n")?;
    let mut answer = [0; 256];
    let n = socket.recv(&mut answer)?;
    Ok(name_in(answer.get(..n).unwrap_or_default()))
}

/// Sends a datagram of `n` bytes, which the server sends back; an error if it comes back different.
pub fn return_datagram(addr: SocketAddr, n: usize, timeout: Duration) -> io::Result<()> {
    let socket = udp_socket(addr, timeout)?;
    socket.connect(addr)?;
    return_connected(&socket, n)
}

/// The same over a connected socket.
pub fn return_connected(socket: &UdpSocket, n: usize) -> io::Result<()> {
    let sent: Vec<u8> = ECHO.iter().copied().chain(0..=250).cycle().take(n).collect();
    socket.send(&sent)?;
    let mut received = vec![0; n + 1];
    let len = socket.recv(&mut received)?;
    let same = received.get(..len) == Some(&sent[..]);
    if same { Ok(()) } else { Err(io::Error::other("the datagram came back changed")) }
}

/// Asks over an unconnected UDP socket; also tells whose address the answer carried.
pub fn ask_to(socket: &UdpSocket, addr: SocketAddr) -> io::Result<(String, SocketAddr)> {
    socket.send_to(b"?\n", addr)?;
    let mut answer = [0; 256];
    let (n, from) = socket.recv_from(&mut answer)?;
    Ok((name_in(answer.get(..n).unwrap_or_default()), from))
}

fn name_in(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).trim_end().to_owned()
}

/// The body of `GET http://addr/path` if its status is 200; other answers are errors.
pub fn http_get(addr: SocketAddr, path: &str, timeout: Duration) -> io::Result<String> {
    let deadline = Instant::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&addr, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut chunk = [0; 16384];
    loop {
        let n = stream.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        answer.extend_from_slice(chunk.get(..n).unwrap_or_default());
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(io::Error::other(format!("{path} answered {status:?}: {body}")));
    }
    Ok(body.to_owned())
}
