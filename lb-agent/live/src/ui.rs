//! `lbctl ui`: a page on this machine, in the browser of whoever started it. Nothing is exposed in the cluster, and no other
//! user or page can use it: it listens on the loopback address, and its URL has a secret.

mod guard;
mod page;
mod question;
mod server;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;

use crate::lbctl::Lbctl;
use guard::Guard;

/// Flags of `ui`.
#[derive(Clone, Debug, clap::Args)]
pub struct UiArgs {
    /// Port on 127.0.0.1; 0 = any free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub port: u16,
    /// Open the page in the default browser
    #[arg(long)]
    pub open: bool,
}

/// Serves the page until the process is ended, and prints its URL first.
///
/// # Errors
/// When the port is in use, there is no randomness, or the URL cannot be printed.
pub fn run(args: &UiArgs, lbctl: Lbctl, out: &mut dyn Write) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("--port {}: listen on {address}", args.port))?;
        let guard = Guard::new(listener.local_addr()?, token()?);
        let url = guard.url();
        writeln!(out, "{url}")?;
        writeln!(
            out,
            "The URL is a secret: who has it sees what lbctl shows. Ctrl-C ends the page."
        )?;
        out.flush()?;
        if args.open {
            open::that_detached(&url).with_context(|| format!("open {url} in a browser"))?;
        }
        server::serve(listener, guard, lbctl).await
    })
}

/// Returns 128 random bits in hexadecimal.
fn token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).context("make a random token")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::token;

    #[test]
    fn tokens_are_long_and_differ() {
        let (one, other) = (token().unwrap(), token().unwrap());
        assert_eq!(one.len(), 32);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(one, other);
    }
}
