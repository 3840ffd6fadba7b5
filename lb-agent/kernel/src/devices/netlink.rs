//! Netlink: requests to the kernel, its answers and its notifications, as bytes and attributes.
//!
//! Only the few attributes that are needed are read, one by one: a kernel with newer or larger attributes elsewhere
//! in a message must not make a Pod's device unreadable.
#![forbid(unsafe_code)]

use std::io;

use netlink_packet_core::{
    DecodeError, Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NlasIterator, emit_u16, emit_u32, parse_i32,
};
use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use crate::syscall;

/// Answer: an error code, 0 = acknowledged.
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
/// The last message of a dump.
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
/// Large enough for every datagram: the kernel fills at most 32 KiB for a reader that offers as much.
const BUFFER: usize = 64 * 1024;
/// Room for notifications while the agent is busy; a node with 250 Pods sends about 1 KiB a device change.
const RECEIVE_BUFFER: u32 = 1 << 20;

/// How the kernel is to answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// One object, or an error.
    Object,
    /// All objects.
    Dump,
    /// Nothing but success or an error.
    Done,
    /// Nothing unless it fails.
    Nothing,
}

/// A request under construction: family header and attributes.
#[derive(Clone, Debug)]
pub struct NetlinkRequest {
    message_type: u16,
    want: Want,
    body: Vec<u8>,
}

impl NetlinkRequest {
    /// A request with its family header, a multiple of 4 bytes.
    pub fn new(message_type: u16, want: Want, header: &[u8]) -> Self {
        Self { message_type, want, body: header.to_vec() }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.body.extend_from_slice(&word16(length));
        self.body.extend_from_slice(&word16(kind));
        self.body.extend_from_slice(value);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
        self
    }

    fn to_bytes(&self, sequence_number: u32) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(16 + self.body.len()).unwrap_or(u32::MAX);
        header.message_type = self.message_type;
        header.flags = NLM_F_REQUEST
            | match self.want {
                Want::Object => 0,
                Want::Dump => NLM_F_DUMP,
                Want::Done => NLM_F_ACK,
                Want::Nothing => 0,
            };
        header.sequence_number = sequence_number;
        let mut bytes = vec![0; 16];
        header.emit(&mut bytes);
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A 16-bit integer in host order, as netlink wants it.
pub fn word16(value: u16) -> [u8; 2] {
    let mut bytes = [0; 2];
    // Cannot fail: the buffer has the size of the integer.
    drop(emit_u16(&mut bytes, value));
    bytes
}

/// A 32-bit integer in host order, as netlink wants it.
pub fn word32(value: u32) -> [u8; 4] {
    let mut bytes = [0; 4];
    // Cannot fail: the buffer has the size of the integer.
    drop(emit_u32(&mut bytes, value));
    bytes
}

/// Attributes of a message or of a nested attribute: kind and value. Ends at the first malformed one.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map_while(|attr| {
        let (kind, length) = (attr.kind(), usize::from(attr.length()));
        Some((kind, attr.into_inner().get(4..length)?))
    })
}

/// The first 0-terminated part of an attribute's value.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or(value)).into_owned()
}

/// A request-and-answer socket. Calls block, but the kernel answers at once.
pub struct NetlinkClient {
    socket: Socket,
    sequence_number: u32,
    buffer: Vec<u8>,
}

impl NetlinkClient {
    /// Opens a socket of a netlink protocol. The kernel checks requests strictly, which filters in dumps need.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_netlink_get_strict_chk(true)?;
        socket.set_ext_ack(true)?;
        Ok(Self { socket, sequence_number: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends a request and hands every answer to `each`: message type and payload.
    ///
    /// # Errors
    /// The kernel's answer, as an OS error.
    pub fn call(
        &mut self,
        request: &NetlinkRequest,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence_number = self.sequence_number.wrapping_add(1);
        self.socket.send(&request.to_bytes(self.sequence_number), 0)?;
        let mut result = None;
        while result.is_none() {
            let n = self.socket.recv(&mut self.buffer.as_mut_slice(), 0)?;
            for message in messages(self.buffer.get(..n).unwrap_or_default()) {
                let message = message.map_err(decode_error)?;
                // The rest of an answer that an earlier call gave up on.
                if message.sequence_number() != self.sequence_number {
                    continue;
                }
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => result = Some(status(message.payload())),
                    message_type => {
                        each(message_type, message.payload());
                        if request.want == Want::Object {
                            result = Some(Ok(()));
                        }
                    }
                }
            }
        }
        result.unwrap_or(Ok(()))
    }
}

impl NetlinkClient {
    /// Sends requests that take effect together or not at all, between the messages that frame them.
    ///
    /// # Errors
    /// The kernel's answer to the first request that it refused, as an OS error.
    pub fn transaction(
        &mut self,
        begin: &NetlinkRequest,
        requests: &[NetlinkRequest],
        end: &NetlinkRequest,
    ) -> io::Result<()> {
        let Some((last, others)) = requests.split_last() else { return Ok(()) };
        let mut bytes = Vec::new();
        let mut push = |request: &NetlinkRequest, want: Want| {
            self.sequence_number = self.sequence_number.wrapping_add(1);
            let request = NetlinkRequest { want, ..request.clone() };
            bytes.extend_from_slice(&request.to_bytes(self.sequence_number));
            self.sequence_number
        };
        let first = push(begin, Want::Nothing);
        for request in others {
            push(request, Want::Nothing);
        }
        // Errors are always told; of successes one is enough, and it is the last.
        let awaited = push(last, Want::Done);
        push(end, Want::Nothing);
        self.socket.send(&bytes, 0)?;
        loop {
            let n = self.socket.recv(&mut self.buffer.as_mut_slice(), 0)?;
            for message in messages(self.buffer.get(..n).unwrap_or_default()) {
                let message = message.map_err(decode_error)?;
                let number = message.sequence_number();
                if message.message_type() != NLMSG_ERROR || number < first {
                    continue;
                }
                status(message.payload())?;
                if number == awaited {
                    return Ok(());
                }
            }
        }
    }
}

/// A socket for the kernel's multicast messages.
pub struct Monitor {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Subscribes to multicast groups. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket or a group.
    pub fn open(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        // More than the system-wide maximum needs a privilege that we may not have; then the default has to do.
        if let Err(e) = socket.set_rx_buf_sz(RECEIVE_BUFFER) {
            tracing::debug!(err = %e, "cannot enlarge the netlink receive buffer, using its default");
        }
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self { socket: syscall::readable(socket)?, buffer: vec![0; BUFFER] })
    }

    /// Waits for notifications and hands every one to `each`. Safe to cancel: nothing is taken out before the wait
    /// is over.
    ///
    /// # Errors
    /// `ENOBUFS` when notifications were lost: then everything has to be asked for again.
    pub async fn receive(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let Self { socket, buffer } = self;
        let n = loop {
            let mut ready = socket.readable().await?;
            if let Ok(result) =
                ready.try_io(|socket| socket.get_ref().recv(&mut buffer.as_mut_slice(), 0))
            {
                break result?;
            }
        };
        for message in messages(buffer.get(..n).unwrap_or_default()) {
            let message = message.map_err(decode_error)?;
            each(message.message_type(), message.payload());
        }
        Ok(())
    }
}

/// The messages of one datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, DecodeError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        match NetlinkBuffer::new_checked(bytes) {
            Ok(message) => {
                let length = (message.length() as usize).next_multiple_of(4);
                bytes = bytes.get(length..).unwrap_or_default();
                Some(Ok(message))
            }
            Err(e) => {
                bytes = &[];
                Some(Err(e))
            }
        }
    })
}

fn status(payload: &[u8]) -> io::Result<()> {
    // An empty NLMSG_DONE is a success.
    let code = payload.get(..4).map_or(Ok(0), parse_i32).map_err(decode_error)?;
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

fn decode_error(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("netlink: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{NetlinkRequest, Want, attributes, messages, status, text, word32};

    #[test]
    fn a_request_reads_back_as_it_was_built() {
        let request =
            NetlinkRequest::new(18, Want::Dump, &[0; 16]).attr(3, b"eth0\0").attr(46, &word32(7));
        let bytes = request.to_bytes(5);
        let parsed: Vec<_> = messages(&bytes).map(Result::unwrap).collect();
        assert_eq!(parsed.len(), 1);
        assert_eq!((parsed[0].message_type(), parsed[0].sequence_number()), (18, 5));
        let attrs: Vec<_> = attributes(&parsed[0].payload()[16..]).collect();
        assert_eq!(attrs, [(3, b"eth0\0".as_slice()), (46, &word32(7))]);
        assert_eq!(text(attrs[0].1), "eth0");
    }

    #[test]
    fn broken_input_ends_the_walk() {
        let request = NetlinkRequest::new(18, Want::Done, &[]).to_bytes(1);
        let mut two = [request.clone(), request].concat();
        two.truncate(20);
        assert_eq!(messages(&two).filter(Result::is_ok).count(), 1);
        assert_eq!(messages(&two).filter(Result::is_err).count(), 1);
        assert_eq!(attributes(&[9, 0, 1, 0, 5]).count(), 0, "longer than its message");
    }

    #[test]
    fn errors_are_those_of_the_kernel() {
        assert!(status(&[]).is_ok());
        assert!(status(&word32(0)).is_ok());
        let refused = status(&word32(1_u32.wrapping_neg())).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(1));
    }
}
