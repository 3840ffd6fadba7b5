//! Servers and loads as a program, for Pods that outlive the process that made them.
//!
//! It works in the network namespace it is started in, and always in bounds of time and number.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use testbed::{
    client::{Transport, ask},
    datagrams::Datagrams,
    exchanges::Exchanges,
    load::Load,
    measure::{self, Closer, What},
    measured,
    series::{self, Target},
    server,
};

const USAGE: &str = "usage:
  traffic serve NAME PORT                 answer NAME on TCP and UDP PORT
  traffic bytes PORT,… [CPU]              send bytes back on TCP and UDP PORT, count streams on TCP PORT + 1
  traffic idle                            wait for a day
  traffic ask tcp|udp ADDR:PORT [COUNT]   ask which server answers
  traffic measure WHAT ADDR:PORT MILLISECONDS CPU   measure against `bytes`, report as JSON
  traffic series WHAT,… ROUNDS MILLISECONDS CPU NAME=ADDR,ECHO,DATAGRAMS,SINK…   several targets in turn
  traffic exchanges ADDR:PORT MILLISECONDS SOURCE…      UDP requests, each from its own port; report as JSON
  traffic load tcp|udp ADDR:PORT RATE SECONDS [PORTS]   send RATE requests per second to PORTS ports in turn, report as JSON
  traffic datagrams ADDR:PORT RATE SECONDS PORTS   send RATE datagrams per second, each from its own port, to PORTS ports in turn
  CPU is a number, `last` or `any`";

/// Each server ends after a day, even if no caller ends it.
const LIFETIME: Duration = Duration::from_secs(86_400);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("traffic: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> anyhow::Result<()> {
    match args {
        ["serve", name, port] => {
            end_after_lifetime();
            server::serve_named(name, number(port)?).context("serve")
        }
        ["bytes", ports, cpu @ ..] => {
            end_after_lifetime();
            if let [cpu] = cpu {
                pin(cpu)?;
            }
            let ports: Vec<u16> = ports.split(',').map(number).collect::<Result<_, _>>()?;
            measured::serve(&ports).context("serve")
        }
        ["idle"] => {
            std::thread::sleep(LIFETIME);
            Ok(())
        }
        ["ask", transport, addr, count @ ..] => {
            let count: u32 = count.first().map_or(Ok(1), |count| number(count))?;
            let (transport, addr) = target(transport, addr)?;
            for _ in 0..count.min(1000) {
                match ask(transport, addr, Duration::from_secs(2)) {
                    Ok(name) => println!("{name}"),
                    Err(err) => println!("{err}"),
                }
            }
            Ok(())
        }
        ["measure", what, addr, millis, cpu] => {
            let (_, addr) = target("tcp", addr)?;
            pin(cpu)?;
            let duration = Duration::from_millis(number(millis)?);
            let rate =
                What::parse(what)?.measure(addr, duration, Closer::Client).context("measure")?;
            println!("{}", serde_json::to_string(&rate).context("print the rate")?);
            Ok(())
        }
        ["series", whats, rounds, millis, cpu, targets @ ..] => {
            let whats: Vec<What> = whats.split(',').map(What::parse).collect::<Result<_, _>>()?;
            let targets: Vec<Target> =
                targets.iter().map(|target| Target::parse(target)).collect::<Result<_, _>>()?;
            pin(cpu)?;
            let duration = Duration::from_millis(number(millis)?);
            series::run(&targets, &whats, number(rounds)?, duration, |entry| {
                let line = serde_json::to_string(&entry).context("print a result")?;
                // The reader follows; if it has gone, this ends.
                writeln!(std::io::stdout(), "{line}").context("print a result")
            })
        }
        ["exchanges", addr, millis, sources @ ..] => {
            let (_, addr) = target("udp", addr)?;
            let sources: Vec<IpAddr> =
                sources.iter().map(|source| number(source)).collect::<Result<_, _>>()?;
            let duration = Duration::from_millis(number(millis)?);
            let asking = Exchanges { duration, ..Exchanges::new(addr, &sources) };
            let answers = asking.run().context("ask")?;
            println!("{}", serde_json::to_string(&answers).context("print the answers")?);
            Ok(())
        }
        ["load", transport, addr, rate, seconds, ports @ ..] => {
            let (transport, addr) = target(transport, addr)?;
            let rate = number::<u32>(rate)?.min(20_000);
            let duration = Duration::from_secs(number(seconds)?);
            let ports: u16 = ports.first().map_or(Ok(1), |ports| number(ports))?;
            // On a busy machine a request takes up to ten milliseconds.
            let workers = (rate / 100).clamp(4, 64);
            let load = Load { rate, duration, ports, workers, ..Load::new(transport, addr) };
            let report = load.run_here();
            println!("{}", serde_json::to_string_pretty(&report).context("print the report")?);
            Ok(())
        }
        ["datagrams", addr, rate, seconds, ports] => {
            let (_, addr) = target("udp", addr)?;
            let rate = number::<u32>(rate)?.min(20_000);
            let duration = Duration::from_secs(number(seconds)?);
            let sent = Datagrams { addr, ports: number(ports)?, rate, duration }.send();
            println!("{}", serde_json::to_string(&sent).context("print what was sent")?);
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

fn end_after_lifetime() {
    std::thread::spawn(|| {
        std::thread::sleep(LIFETIME);
        std::process::exit(0);
    });
}

fn pin(cpu: &str) -> anyhow::Result<()> {
    match cpu {
        "any" => Ok(()),
        "last" => measure::pin(measure::last_cpu()?),
        cpu => measure::pin(number(cpu)?),
    }
}

fn target(transport: &str, addr: &str) -> anyhow::Result<(Transport, SocketAddr)> {
    let transport = match transport {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        other => bail!("{other:?} is neither tcp nor udp"),
    };
    let addr = addr.parse().with_context(|| format!("{addr:?} is not ADDR:PORT"))?;
    Ok((transport, addr))
}

fn number<T: std::str::FromStr>(text: &str) -> anyhow::Result<T> {
    text.parse().ok().with_context(|| format!("{text:?} is not a number in range"))
}
