//! Rules of nf_tables, by netlink: no program is run, and a batch is carried out whole or not at all.

mod steps;

use std::io;

use netlink_bindings::nftables::{Chained, Nfgenmsg, Request};
use netlink_socket2::{NetlinkSocket, ReplyError};

use crate::netlink::{Refusal, Talk};

/// `NFNL_SUBSYS_NFTABLES`, which batches name.
const SUBSYSTEM: u16 = 10;
/// `NFTNL_UDATA_RULE_COMMENT` and `NFTNL_UDATA_TABLE_COMMENT`.
const COMMENT: u8 = 0;
/// Kind of the user data that holds a tag; `nft` passes over kinds that it doesn't know.
const TAG: u8 = 111;
/// Bytes of a comment, its end among them.
const COMMENT_BYTES_MAX: usize = 128;
/// How often a batch is tried again because somebody else changed the rules meanwhile.
const TRIES: u32 = 200;

/// Family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ipv4 = 2,
    /// Frames in a bridge.
    Bridge = 7,
    /// IPv6.
    Ipv6 = 10,
}

/// Where a base chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// Packets that begin here.
    Output = 3,
    /// After routing.
    Postrouting = 4,
}

/// What a chain of addresses is translated at.
pub const PRIORITY_DNAT: i32 = -100;
/// The same for sources.
pub const PRIORITY_SNAT: i32 = 100;
/// Type of a local address (`RTN_LOCAL`).
pub const LOCAL: u32 = 2;

/// One step of a rule. Comparisons end the rule when they don't hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The packet's protocol of layer 3 (`nfproto`).
    IsFamily(Family),
    /// The packet's protocol of layer 4.
    IsProtocol(u8),
    /// Its source address lies in a network (address and prefix), or not.
    SourceIn(std::net::IpAddr, u8, bool),
    /// Its destination address lies in a network (address and prefix), or not.
    DestinationIn(std::net::IpAddr, u8, bool),
    /// Its destination port.
    IsDestinationPort(u16),
    /// The link that it came by has a name, or another.
    CameBy(String, bool),
    /// The link that it leaves by has a name, or another.
    LeavesBy(String, bool),
    /// Its mark is a number, or another.
    HasMark(u32, bool),
    /// The hardware address that its frame came from.
    FrameFrom([u8; 6]),
    /// Its destination address belongs to this machine.
    IsForHere,
    /// Translate the destination.
    Dnat(std::net::IpAddr, u16),
    /// Translate the source to that of the outgoing link.
    Masquerade,
    /// Go on in another chain and come back.
    Jump(String),
    /// Go on in another chain.
    Goto(String),
    /// Leave the chain.
    Return,
    /// Throw the packet away.
    Drop,
}

/// A rule as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its handle, for deletion.
    pub handle: u64,
    /// Its comment.
    pub comment: String,
    /// Its tag: a text beside the comment that `nft` doesn't show. Empty for rules that others made.
    pub tag: String,
}

/// Why rules can't be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("{step} nftables")]
pub struct NftablesError {
    step: &'static str,
    #[source]
    source: io::Error,
}

impl NftablesError {
    /// There is no such table or chain.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.source.raw_os_error() == Some(nix::libc::ENOENT)
    }
}

fn header(family: Family) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family as u8;
    header
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM);
    header
}

/// One change of a batch.
#[derive(Clone, Debug)]
enum Change {
    Table(Family, String, String),
    Chain(Family, String, String),
    BaseChain(Family, String, String, &'static str, Hook, i32),
    Rule { family: Family, table: String, chain: String, steps: Vec<Step>, notes: Vec<u8> },
    DeleteRule { family: Family, table: String, chain: String, handle: u64 },
    FlushChain(Family, String, String),
    DeleteChain(Family, String, String),
    DeleteTable(Family, String),
}

/// Changes that are made together.
#[derive(Clone, Debug, Default)]
pub struct Batch(Vec<Change>);

impl Batch {
    /// Makes a table; fine when it is there.
    pub fn table(&mut self, family: Family, table: &str, comment: &str) -> &mut Batch {
        self.push(Change::Table(family, table.into(), comment.into()))
    }

    /// Makes a chain; fine when it is there.
    pub fn chain(&mut self, family: Family, table: &str, chain: &str) -> &mut Batch {
        self.push(Change::Chain(family, table.into(), chain.into()))
    }

    /// Makes a chain that translates addresses at a hook; fine when it is there.
    pub fn nat_chain(&mut self, family: Family, table: &str, chain: &str, hook: Hook, priority: i32) -> &mut Batch {
        self.push(Change::BaseChain(family, table.into(), chain.into(), "nat", hook, priority))
    }

    /// Makes a chain that lets packets pass or not at a hook; fine when it is there.
    pub fn filter_chain(&mut self, family: Family, table: &str, chain: &str, hook: Hook, priority: i32) -> &mut Batch {
        self.push(Change::BaseChain(family, table.into(), chain.into(), "filter", hook, priority))
    }

    /// Appends a rule.
    pub fn rule(&mut self, family: Family, table: &str, chain: &str, steps: &[Step], comment: &str) -> &mut Batch {
        self.tagged_rule(family, table, chain, steps, comment, "")
    }

    /// Appends a rule with a tag beside its comment; of each the first 127 bytes are kept.
    pub fn tagged_rule(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        steps: &[Step],
        comment: &str,
        tag: &str,
    ) -> &mut Batch {
        let mut notes = note(COMMENT, comment);
        notes.extend(note(TAG, tag));
        let (table, chain) = (table.into(), chain.into());
        self.push(Change::Rule { family, table, chain, steps: steps.to_vec(), notes })
    }

    /// Deletes a rule.
    pub fn delete_rule(&mut self, family: Family, table: &str, chain: &str, handle: u64) -> &mut Batch {
        self.push(Change::DeleteRule { family, table: table.into(), chain: chain.into(), handle })
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, family: Family, table: &str, chain: &str) -> &mut Batch {
        self.push(Change::FlushChain(family, table.into(), chain.into()))
    }

    /// Deletes a chain that is there, with its rules. No rule may lead to it any more.
    pub fn delete_chain(&mut self, family: Family, table: &str, chain: &str) -> &mut Batch {
        self.flush_chain(family, table, chain).push(Change::DeleteChain(family, table.into(), chain.into()))
    }

    /// Deletes a table with all that is in it.
    pub fn delete_table(&mut self, family: Family, table: &str) -> &mut Batch {
        self.push(Change::DeleteTable(family, table.into()))
    }

    fn push(&mut self, change: Change) -> &mut Batch {
        self.0.push(change);
        self
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A talk with the kernel about rules, in this thread's network namespace.
///
/// The kernel lets whoever closes the socket by which rules were deleted wait until nobody reads them (a grace period).
pub struct Nftables {
    reads: NetlinkSocket,
    writes: Option<Talk>,
}

impl Default for Nftables {
    fn default() -> Nftables {
        Nftables::open()
    }
}

impl Nftables {
    /// Opens a talk; the socket is made by the first word.
    #[must_use]
    pub fn open() -> Nftables {
        Nftables { reads: NetlinkSocket::new(), writes: None }
    }

    /// Whether rules were changed by this talk.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.writes.is_some()
    }

    /// Leaves the socket open until this process ends, or the child that it leaves behind ([`crate::process::linger`]).
    pub fn leave_open(self) {
        std::mem::forget(self);
    }

    fn generation(&mut self) -> Result<u32, ReplyError> {
        let request = Request::new().op_getgen_do(&Nfgenmsg::new());
        let mut reply = self.reads.request(&request)?;
        let (_, attributes) = reply.recv_one()?;
        Ok(attributes.get_id()?)
    }

    /// Makes all changes of a batch that `plan` gives for the rules as they are, or none. When somebody else changes
    /// rules in between, `plan` is asked again.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn change<E: From<NftablesError>>(
        &mut self,
        mut plan: impl FnMut(&mut Nftables) -> Result<Batch, E>,
    ) -> Result<(), E> {
        let failed = |source| NftablesError { step: "change", source };
        let mut tries = 0;
        loop {
            let generation = self.generation().map_err(|error| failed(to_io(&error)))?;
            let batch = plan(self)?;
            if batch.is_empty() {
                return Ok(());
            }
            match self.send(&batch, generation) {
                Ok(()) => return Ok(()),
                Err(refusal) if refusal.source.raw_os_error() == Some(nix::libc::ERESTART) && tries < TRIES => {
                    tries += 1;
                    // In a crowd all have read the same state: each waits for a time of its own before the next try.
                    let pace = u64::from(tries.min(10)) * (1 + u64::from(std::process::id() % 4));
                    std::thread::sleep(std::time::Duration::from_millis(pace));
                }
                Err(refusal) => return Err(failed(refusal.source).into()),
            }
        }
    }

    fn send(&mut self, batch: &Batch, generation: u32) -> Result<(), Refusal> {
        let mut chained = Chained::new(1);
        chained.request().op_batch_begin_do(&batch_header()).encode().push_genid(generation);
        for change in &batch.0 {
            encode(&mut chained, change);
        }
        chained.request().op_batch_end_do(&batch_header());
        let talk = match self.writes.take() {
            Some(talk) => talk,
            None => Talk::with_netfilter()?,
        };
        self.writes.insert(talk).carry_out(chained.finalize().into_chained().into_buf())
    }

    /// The rules of a chain, in order; none when there is no such chain.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rules(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<Rule>, NftablesError> {
        let failed = |error: ReplyError| NftablesError { step: "read", source: to_io(&error) };
        let mut request = Request::new().op_getrule_dump(&header(family));
        request.encode().push_table_bytes(table.as_bytes()).push_chain_bytes(chain.as_bytes());
        let mut replies = self.reads.request(&request).map_err(|source| NftablesError { step: "read", source })?;
        let mut rules = Vec::new();
        while let Some(reply) = replies.recv() {
            let (_, attributes) = match reply {
                Ok(reply) => reply,
                Err(error) if to_io(&error).raw_os_error() == Some(nix::libc::ENOENT) => return Ok(vec![]),
                Err(error) => return Err(failed(error)),
            };
            // A kernel that doesn't filter by chain gives all.
            let right = attributes.get_chain().is_ok_and(|name| name.to_bytes() == chain.as_bytes())
                && attributes.get_table().is_ok_and(|name| name.to_bytes() == table.as_bytes());
            if let (true, Ok(handle)) = (right, attributes.get_handle()) {
                let notes = attributes.get_userdata().unwrap_or_default();
                rules.push(Rule { handle, comment: read_note(notes, COMMENT), tag: read_note(notes, TAG) });
            }
        }
        Ok(rules)
    }
}

fn to_io(error: &ReplyError) -> io::Error {
    let error = error.as_io_error();
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}

/// User data of a rule or table that holds a text: kind, length, text and NUL. Nothing for no text.
fn note(kind: u8, text: &str) -> Vec<u8> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut end = text.len().min(COMMENT_BYTES_MAX - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text.as_bytes()[..end];
    let mut bytes = vec![kind, text.len() as u8 + 1];
    bytes.extend(text);
    bytes.push(0);
    bytes
}

/// The text of a kind in user data.
fn read_note(mut bytes: &[u8], wanted: u8) -> String {
    while let [kind, length, rest @ ..] = bytes {
        let length = usize::from(*length).min(rest.len());
        if *kind == wanted {
            let text = &rest[..length];
            return String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned();
        }
        bytes = &rest[length..];
    }
    String::new()
}

fn encode(chained: &mut Chained<'static>, change: &Change) {
    match change {
        Change::Table(family, table, comment) => {
            let mut request = chained.request().set_create().op_newtable_do(&header(*family));
            let encoder = request.encode().push_name_bytes(table.as_bytes());
            if !comment.is_empty() {
                encoder.push_userdata(&note(COMMENT, comment));
            }
        }
        Change::Chain(family, table, chain) => {
            let mut request = chained.request().set_create().op_newchain_do(&header(*family));
            request.encode().push_table_bytes(table.as_bytes()).push_name_bytes(chain.as_bytes());
        }
        Change::BaseChain(family, table, chain, kind, hook, priority) => {
            let mut request = chained.request().set_create().op_newchain_do(&header(*family));
            request
                .encode()
                .push_table_bytes(table.as_bytes())
                .push_name_bytes(chain.as_bytes())
                .push_type_bytes(kind.as_bytes())
                .nested_hook()
                .push_num(*hook as u32)
                .push_priority(*priority)
                .end_nested();
        }
        Change::Rule { family, table, chain, steps, notes } => {
            let mut steps_encoder = chained
                .request()
                .set_create()
                .set_append()
                .op_newrule_do(&header(*family))
                .into_encoder()
                .push_table_bytes(table.as_bytes())
                .push_chain_bytes(chain.as_bytes())
                .nested_expressions();
            for step in steps {
                steps_encoder = steps::push_step(steps_encoder, step);
            }
            let rule = steps_encoder.end_nested();
            if !notes.is_empty() {
                rule.push_userdata(notes);
            }
        }
        Change::DeleteRule { family, table, chain, handle } => {
            let mut request = chained.request().op_delrule_do(&header(*family));
            request.encode().push_table_bytes(table.as_bytes()).push_chain_bytes(chain.as_bytes()).push_handle(*handle);
        }
        Change::FlushChain(family, table, chain) => {
            let mut request = chained.request().op_delrule_do(&header(*family));
            request.encode().push_table_bytes(table.as_bytes()).push_chain_bytes(chain.as_bytes());
        }
        Change::DeleteChain(family, table, chain) => {
            let mut request = chained.request().op_delchain_do(&header(*family));
            request.encode().push_table_bytes(table.as_bytes()).push_name_bytes(chain.as_bytes());
        }
        Change::DeleteTable(family, table) => {
            let mut request = chained.request().op_deltable_do(&header(*family));
            request.encode().push_name_bytes(table.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_read_as_they_were_written() {
        for comment in ["", "one", &"x".repeat(300)] {
            let mut bytes = note(COMMENT, comment);
            bytes.extend(note(TAG, "tag"));
            assert_eq!(read_note(&bytes, COMMENT), comment[..comment.len().min(COMMENT_BYTES_MAX - 1)]);
            assert_eq!(read_note(&bytes, TAG), "tag");
        }
        assert_eq!(read_note(&[9, 1, 0, 0, 3, b'a', b'b', 0], COMMENT), "ab");
        assert_eq!(read_note(&[0, 200, b'a'], COMMENT), "a");
    }
}
