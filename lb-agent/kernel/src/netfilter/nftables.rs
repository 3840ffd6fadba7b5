//! The words of nf_tables' netlink protocol (include/uapi/linux/netfilter/nf_tables.h), and questions about tables and chains.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::io;

use lb_core::host_rules::RuleVerdict;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::devices::netlink::{NetlinkClient, NetlinkRequest, Want, attributes, text};

/// The subsystem, in each message type.
pub const NFTABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
/// Asks for tables.
pub const GETTABLE: u16 = NFTABLES | libc::NFT_MSG_GETTABLE as u16;
/// Asks for chains.
pub const GETCHAIN: u16 = NFTABLES | libc::NFT_MSG_GETCHAIN as u16;
/// Asks for rules.
pub const GETRULE: u16 = NFTABLES | libc::NFT_MSG_GETRULE as u16;
/// Asks for the elements of a set.
pub(super) const GETSETELEM: u16 = NFTABLES | libc::NFT_MSG_GETSETELEM as u16;
/// Asks for the number of the ruleset.
const GETGEN: u16 = NFTABLES | libc::NFT_MSG_GETGEN as u16;
/// Length of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// Attributes of a table.
pub const NFTA_TABLE_NAME: u16 = 1;
/// Attributes of a chain.
pub const NFTA_CHAIN_TABLE: u16 = 1;
/// Its name.
pub const NFTA_CHAIN_NAME: u16 = 3;
/// Where the kernel calls it.
pub const NFTA_CHAIN_HOOK: u16 = 4;
/// What happens at its end.
pub const NFTA_CHAIN_POLICY: u16 = 5;
/// `filter`, `nat`, `route`.
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
/// Attributes of a rule.
pub const NFTA_RULE_TABLE: u16 = 1;
/// Its chain.
pub const NFTA_RULE_CHAIN: u16 = 2;
/// Its number in the table.
pub const NFTA_RULE_HANDLE: u16 = 3;
/// What it does.
pub const NFTA_RULE_EXPRESSIONS: u16 = 4;
/// Attributes of an expression.
pub(super) const NFTA_EXPR_NAME: u16 = 1;
/// Its parameters.
pub(super) const NFTA_EXPR_DATA: u16 = 2;
/// Attribute of `immediate`.
pub(super) const NFTA_IMMEDIATE_DATA: u16 = 2;
/// Attributes of data.
pub(super) const NFTA_DATA_VALUE: u16 = 1;
/// A verdict instead of a value.
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
/// Attributes of a verdict.
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
/// The chain that decides.
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;
/// Attribute of `NFT_MSG_NEWGEN`.
const NFTA_GEN_ID: u16 = 1;
/// The policy or verdict to drop, as a chain has it.
pub const NF_DROP: [u8; 4] = [0; 4];

/// `struct nfgenmsg`: family, version 0, resource id 0.
pub fn header(family: u8) -> [u8; NFGENMSG] {
    [family, 0, 0, 0]
}

/// The attributes behind the header of a message.
pub fn fields(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(payload.get(NFGENMSG..).unwrap_or_default())
}

/// The first attribute of this kind in a nested attribute.
pub(super) fn nested(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A name as an attribute has it.
pub fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Name and parameters of an expression.
pub(super) fn expression(bytes: &[u8]) -> Option<(String, &[u8])> {
    let name = text(nested(bytes, NFTA_EXPR_NAME)?);
    Some((name, nested(bytes, NFTA_EXPR_DATA).unwrap_or_default()))
}

/// The chain that an expression leads to, if it does.
pub fn target(expression: &[u8]) -> Option<String> {
    let (name, parameters) = self::expression(expression)?;
    if name != "immediate" {
        return None;
    }
    let data = nested(parameters, NFTA_IMMEDIATE_DATA)?;
    let chain = nested(nested(data, NFTA_DATA_VERDICT)?, NFTA_VERDICT_CHAIN)?;
    Some(text(chain))
}

/// A verdict, from its attributes.
pub(super) fn verdict(bytes: &[u8]) -> RuleVerdict {
    let chain = || nested(bytes, NFTA_VERDICT_CHAIN).map(text).unwrap_or_default();
    let code = number(bytes, NFTA_VERDICT_CODE).map(u32::cast_signed);
    match code {
        Some(libc::NF_ACCEPT) => RuleVerdict::Accept,
        Some(libc::NFT_CONTINUE | libc::NFT_BREAK) => RuleVerdict::Continue,
        Some(libc::NFT_JUMP) => RuleVerdict::Jump(chain()),
        Some(libc::NFT_GOTO) => RuleVerdict::Goto(chain()),
        Some(libc::NFT_RETURN) => RuleVerdict::Return,
        Some(libc::NF_DROP) => RuleVerdict::Stop(Cow::Borrowed("drop")),
        Some(code) if code & 0xff == libc::NF_QUEUE => RuleVerdict::Stop(Cow::Borrowed("queue")),
        Some(_) | None => RuleVerdict::Stop(Cow::Borrowed("an unknown verdict")),
    }
}

/// A number of nf_tables, in network order.
pub(super) fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    nested(bytes, kind)?.try_into().ok().map(u32::from_be_bytes)
}

/// Whether the kernel has what a request asks for.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn exists(client: &mut NetlinkClient, request: &NetlinkRequest) -> io::Result<bool> {
    match client.call(request, |_, _| {}) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether an error says that the kernel has no nf_tables, or none of a family.
pub fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [libc::EOPNOTSUPP, libc::EINVAL, libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT];
    error.raw_os_error().is_some_and(|code| unsupported.contains(&code))
}

/// The tables of a family by name.
///
/// # Errors
/// When the kernel refuses.
pub fn tables(client: &mut NetlinkClient, family: u8) -> io::Result<Vec<String>> {
    let mut tables = Vec::new();
    client.call(&NetlinkRequest::new(GETTABLE, Want::Dump, &header(family)), |_, payload| {
        let name = fields(payload).find(|(kind, _)| *kind == NFTA_TABLE_NAME);
        tables.extend(name.map(|(_, value)| text(value)));
    })?;
    Ok(tables)
}

/// Number of the ruleset: another one after each change. `None` without nf_tables.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn generation() -> io::Result<Option<[u8; 4]>> {
    let mut client = NetlinkClient::open(NETLINK_NETFILTER)?;
    let mut found = None;
    let request = NetlinkRequest::new(GETGEN, Want::Object, &header(0));
    match client.call(&request, |_, payload| {
        let id = fields(payload).find(|(kind, _)| *kind == NFTA_GEN_ID);
        found = id.and_then(|(_, value)| value.try_into().ok());
    }) {
        Err(err) if is_unsupported(&err) => Ok(None),
        Err(err) => Err(err),
        Ok(()) => Ok(found),
    }
}
