//! UDP questions with one answer each, every one from a source port of its own, as name lookups are.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::server::ECHO;

/// No run lasts longer.
const MAX_DURATION: Duration = Duration::from_secs(120);
/// Questions that wait for their answers at a time.
const UNDER_WAY: usize = 64;
/// The first source port; from the last one it goes on at the next source address, and so round.
const FIRST_PORT: u64 = 1024;
const PORTS: u64 = 65_536 - FIRST_PORT;

/// What to ask, from where and how often.
#[derive(Clone, Copy, Debug)]
pub struct Exchanges<'a> {
    /// A server of [`crate::server`], or what leads to one.
    pub addr: SocketAddr,
    /// Addresses to ask from.
    pub sources: &'a [IpAddr],
    /// Questions, at most.
    pub number: u64,
    /// How long, at most.
    pub duration: Duration,
    /// After this time a question is lost.
    pub patience: Duration,
}

/// What happened to the questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// Questions.
    pub asked: u64,
    /// Those whose own answer came.
    pub answered: u64,
    /// Those that were answered with something else.
    pub mixed_up: u64,
    /// Seconds from the start to the first question without its answer.
    pub first_lost_s: Option<f64>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Answers {
    /// Questions without their answer.
    pub const fn lost(&self) -> u64 {
        self.asked - self.answered
    }
}

/// A question that waits.
struct Asked {
    socket: UdpSocket,
    question: Vec<u8>,
    at: Instant,
}

impl<'a> Exchanges<'a> {
    /// As many as ten seconds allow, each with a quarter of a second of patience.
    pub const fn new(addr: SocketAddr, sources: &'a [IpAddr]) -> Self {
        Self {
            addr,
            sources,
            number: u64::MAX,
            duration: Duration::from_secs(10),
            patience: Duration::from_millis(250),
        }
    }

    /// Asks as fast as answers come, in the calling thread's namespace.
    ///
    /// # Errors
    /// When a question cannot be sent, or there is no source.
    pub fn run(self) -> io::Result<Answers> {
        let mut answers = Answers::default();
        let mut waiting = VecDeque::with_capacity(UNDER_WAY);
        let start = Instant::now();
        let end = start + self.duration.min(MAX_DURATION);
        for n in 0..self.number {
            if Instant::now() >= end {
                break;
            }
            if let Some(asked) = self.ask(n)? {
                waiting.push_back(asked);
                answers.asked += 1;
            }
            if waiting.len() < UNDER_WAY {
                continue;
            }
            if let Some(asked) = waiting.pop_front() {
                self.hear(&asked, start, &mut answers)?;
            }
        }
        for asked in waiting {
            self.hear(&asked, start, &mut answers)?;
        }
        answers.seconds = start.elapsed().as_secs_f64();
        Ok(answers)
    }

    /// `None` where another socket has the port.
    fn ask(&self, n: u64) -> io::Result<Option<Asked>> {
        let nth = (n / PORTS) as usize % self.sources.len().max(1);
        let source = self.sources.get(nth).ok_or(io::ErrorKind::InvalidInput)?;
        let socket = match UdpSocket::bind((*source, (FIRST_PORT + n % PORTS) as u16)) {
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => return Ok(None),
            other => other?,
        };
        socket.connect(self.addr)?;
        let question = [ECHO, n.to_string().as_bytes()].concat();
        let at = Instant::now();
        socket.send(&question)?;
        Ok(Some(Asked { socket, question, at }))
    }

    fn hear(&self, asked: &Asked, start: Instant, answers: &mut Answers) -> io::Result<()> {
        let left = self.patience.saturating_sub(asked.at.elapsed()).max(Duration::from_millis(1));
        asked.socket.set_read_timeout(Some(left))?;
        let mut answer = [0; 64];
        match asked.socket.recv(&mut answer) {
            Ok(n) if answer.get(..n) == Some(&asked.question) => {
                answers.answered += 1;
                return Ok(());
            }
            Ok(_) => answers.mixed_up += 1,
            // Nothing came, or a refusal.
            Err(_) => {}
        }
        let lost = (asked.at - start).as_secs_f64();
        answers.first_lost_s = Some(answers.first_lost_s.map_or(lost, |first| first.min(lost)));
        Ok(())
    }
}
