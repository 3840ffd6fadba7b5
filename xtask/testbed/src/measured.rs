//! The server that measurements run against: bytes back over TCP and UDP, and a sink for streams.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

/// After this byte the server closes the connection itself. The closed port then waits on the server's side, so a client can
/// open any number of connections one after the other.
pub(crate) const CLOSE: u8 = b'c';
/// Bytes that are read or written at once by streams, as iperf3 does.
pub(crate) const CHUNK: usize = 128 << 10;

/// Serves in the calling process's own namespace until the process ends: TCP and UDP `port` of each of these send bytes back,
/// and TCP `port + 1` counts the bytes of streams.
pub fn serve(ports: &[u16]) -> io::Result<()> {
    let mut threads = Vec::new();
    for &port in ports {
        let echo = TcpListener::bind(&any(port)[..])?;
        let datagrams = UdpSocket::bind(&any(port)[..])?;
        let sink = TcpListener::bind(&any(port + 1)[..])?;
        thread::spawn(move || send_datagrams_back(&datagrams));
        thread::spawn(move || {
            for stream in sink.incoming().flatten() {
                // The client notices a failure.
                thread::spawn(move || drop(count(stream)));
            }
        });
        threads.push(thread::spawn(move || {
            for stream in echo.incoming().flatten() {
                drop(send_bytes_back(stream));
            }
        }));
    }
    threads.into_iter().for_each(|thread| drop(thread.join()));
    Ok(())
}

/// All addresses of both families, or of IPv4 on a machine without IPv6.
fn any(port: u16) -> [SocketAddr; 2] {
    [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
}

/// One connection after the other on one thread: a thread for each would be part of what is measured.
fn send_bytes_back(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; 64];
    loop {
        let n = stream.read(&mut bytes)?;
        let bytes = bytes.get(..n).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        stream.write_all(bytes)?;
        if bytes == [CLOSE] {
            return Ok(());
        }
    }
}

fn send_datagrams_back(socket: &UdpSocket) {
    let mut bytes = [0; 2048];
    loop {
        if let Ok((n, from)) = socket.recv_from(&mut bytes) {
            // The client notices a lost answer.
            drop(socket.send_to(bytes.get(..n).unwrap_or_default(), from));
        }
    }
}

/// Reads a stream to its end and answers with the number of its bytes.
fn count(mut stream: TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut total = 0_u64;
    loop {
        let n = stream.read(&mut chunk)?;
        if n == 0 {
            return stream.write_all(&total.to_be_bytes());
        }
        total += n as u64;
    }
}
