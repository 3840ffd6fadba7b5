//! Servers that answer with a name, so that clients can count who served them. Std only, bounded, stopped on drop.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, Scope},
    time::Duration,
};

use anyhow::Context as _;
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike as _},
};

use crate::netns::Netns;

/// Most connections that one server holds at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 512;
/// The question that is answered with the client's address instead of the server's name.
pub(crate) const SEEN_AS: &[u8] = b"seen as?\n";
/// A datagram that begins like this comes back as it is.
pub(crate) const ECHO: &[u8] = b"echo ";
/// How often blocked servers look whether they shall stop.
const STOP_CHECK: Duration = Duration::from_millis(100);
/// For how many of these times a client may be silent that keeps the only thread of a server.
const MOST_SILENCE: u32 = 30;

/// A running server; dropping it closes its sockets.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Answers every line on TCP `port` and every datagram on UDP `port` with `name`, in both families.
    pub fn named(netns: &Netns, name: &str, port: u16) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = netns
            .enter(|| io::Result::Ok((listen(port)?, udp(port)?)))?
            .with_context(|| format!("listen on port {port} in {netns}"))?;
        let answer: Arc<[u8]> = format!("{name}\n").into_bytes().into();
        let threads = vec![
            thread::spawn({
                let (stop, answer) = (stop.clone(), answer.clone());
                move || accept_lines(&tcp, &stop, &answer)
            }),
            thread::spawn({
                let stop = stop.clone();
                move || answer_datagrams(&udp, &stop, &answer)
            }),
        ];
        Ok(Self { stop, threads })
    }

    /// Sends every byte back, one connection after the other on one thread: what round trips and connects are
    /// measured against, and what shows damaged bytes.
    pub fn bytes(netns: &Netns, port: u16) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let tcp = netns
            .enter(|| listen(port))?
            .with_context(|| format!("listen on port {port} in {netns}"))?;
        let thread = thread::spawn({
            let stop = stop.clone();
            move || echo_bytes(&tcp, &stop)
        });
        Ok(Self { stop, threads: vec![thread] })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server that panicked has shown in its clients' failures.
            drop(thread.join());
        }
    }
}

/// Serves on TCP and UDP `port` in the calling process's own namespace until the process ends.
pub fn serve_named(name: &str, port: u16) -> io::Result<()> {
    let (tcp, udp) = (listen(port)?, udp(port)?);
    let answer: Arc<[u8]> = format!("{name}\n").into_bytes().into();
    let never = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let (never, answer) = (never.clone(), answer.clone());
        move || answer_datagrams(&udp, &never, &answer)
    });
    accept_lines(&tcp, &never, &answer);
    Ok(())
}

/// A listener on both families whose `accept` returns now and then, to look for the end.
fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let limit = TimeVal::milliseconds(STOP_CHECK.as_millis() as i64);
    setsockopt(&listener.as_fd(), sockopt::ReceiveTimeout, &limit)?;
    Ok(listener)
}

fn udp(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    socket.set_read_timeout(Some(STOP_CHECK))?;
    Ok(socket)
}

/// What the threads of one listener share. Each takes a connection and serves it to its end; the last idle one starts another before it
/// does, so that threads are made for connections that are open at once, not for each one.
struct Acceptors<'a> {
    listener: &'a TcpListener,
    stop: &'a AtomicBool,
    answer: &'a [u8],
    threads: AtomicUsize,
    idle: AtomicUsize,
}

fn accept_lines(listener: &TcpListener, stop: &AtomicBool, answer: &[u8]) {
    let (threads, idle) = (AtomicUsize::new(1), AtomicUsize::new(1));
    let acceptors = Acceptors { listener, stop, answer, threads, idle };
    thread::scope(|scope| acceptors.accept(scope));
}

impl Acceptors<'_> {
    fn accept<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((stream, _)) = self.listener.accept() else { continue };
            let last = self.idle.fetch_sub(1, Ordering::Relaxed) == 1;
            if !last || self.start_another(scope) {
                // Ends with the client, or when the server stops: the client sees which.
                drop(answer_lines(stream, self.stop, self.answer));
            }
            self.idle.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether there was room for one more thread.
    fn start_another<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> bool {
        // Only the last idle thread comes here.
        if self.threads.load(Ordering::Relaxed) > MAX_CONNECTIONS {
            return false;
        }
        self.threads.fetch_add(1, Ordering::Relaxed);
        self.idle.fetch_add(1, Ordering::Relaxed);
        scope.spawn(move || self.accept(scope));
        true
    }
}

fn answer_lines(mut stream: TcpStream, stop: &AtomicBool, answer: &[u8]) -> io::Result<()> {
    // The receive timeout is the listener's.
    stream.set_nodelay(true)?;
    let mut question = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut question) {
            Ok(0) => return Ok(()),
            Ok(_) if question.starts_with(SEEN_AS) => {
                stream.write_all(&seen_as(stream.peer_addr()?))?
            }
            Ok(_) => stream.write_all(answer)?,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket, stop: &AtomicBool, answer: &[u8]) {
    let mut room = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        // A lost answer is the client's to notice.
        if let Ok((n, from)) = socket.recv_from(&mut room) {
            let question = room.get(..n).unwrap_or_default();
            drop(if question.starts_with(SEEN_AS) {
                socket.send_to(&seen_as(from), from)
            } else if question.starts_with(ECHO) {
                socket.send_to(question, from)
            } else {
                socket.send_to(answer, from)
            });
        }
    }
}

/// The line that says which address and port the client has here.
fn seen_as(from: SocketAddr) -> Vec<u8> {
    format!("{}\n", SocketAddr::new(from.ip().to_canonical(), from.port())).into_bytes()
}

fn echo_bytes(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        // Accepted sockets inherit the listener's receive timeout. On a busy machine a client may be silent for longer.
        drop(stream.set_nodelay(true));
        let mut bytes = [0; 65_536];
        let mut silent = 0;
        while silent < MOST_SILENCE && !stop.load(Ordering::Relaxed) {
            match stream.read(&mut bytes) {
                Ok(n @ 1..) => {
                    silent = 0;
                    if stream.write_all(bytes.get(..n).unwrap_or_default()).is_err() {
                        break;
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => silent += 1,
                Ok(_) | Err(_) => break,
            }
        }
    }
}
