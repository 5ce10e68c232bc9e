//! The steps of a rule, as nf_tables takes them.

use netlink_bindings::nftables::{
    CmpOps, FibFlags, MetaKeys, NatRangeFlags, PayloadBase, PushExprListAttrs, PushRuleAttrs, Registers, VerdictCode,
};
use netlink_bindings::utils::RequestBuf;

use super::{Family, LOCAL, Step};

/// `NFT_FIB_RESULT_ADDRTYPE`; the bindings count it without the value that stands for none.
const FIB_ADDRTYPE: u32 = 3;

pub(super) type Steps<'a> = PushExprListAttrs<PushRuleAttrs<RequestBuf<'a>>>;

/// The verdict that throws packets away.
const NF_DROP: u32 = 0;

/// The register that values are compared in.
const VALUE: u32 = Registers::Reg1 as u32;
/// The register of a port beside an address.
const PORT: u32 = Registers::Reg2 as u32;

pub(super) fn push_step<'a>(steps: Steps<'a>, step: &Step) -> Steps<'a> {
    match step {
        Step::IsFamily(family) => {
            let protocol = if *family == Family::Ipv6 { 10 } else { 2 };
            compare(meta(steps, MetaKeys::Nfproto), &[protocol], true)
        }
        Step::IsProtocol(protocol) => compare(meta(steps, MetaKeys::L4Proto), &[*protocol], true),
        Step::SourceIn(address, prefix, inside) => in_network(steps, *address, *prefix, true, *inside),
        Step::DestinationIn(address, prefix, inside) => in_network(steps, *address, *prefix, false, *inside),
        Step::IsDestinationPort(port) => {
            compare(payload(steps, PayloadBase::TransportHeader, 2, 2), &port.to_be_bytes(), true)
        }
        Step::CameBy(name, so) => compare(meta(steps, MetaKeys::Iifname), &link_name(name), *so),
        Step::LeavesBy(name, so) => compare(meta(steps, MetaKeys::Oifname), &link_name(name), *so),
        Step::HasMark(mark, so) => compare(meta(steps, MetaKeys::Mark), &mark.to_ne_bytes(), *so),
        Step::FrameFrom(mac) => compare(payload(steps, PayloadBase::LinkLayerHeader, 6, 6), mac, true),
        Step::IsForHere => {
            let steps = steps
                .nested_elem()
                .nested_data_fib()
                .push_dreg(VALUE)
                .push_result(FIB_ADDRTYPE)
                .push_flags(FibFlags::Daddr as u32)
                .end_nested()
                .end_nested();
            compare(steps, &LOCAL.to_ne_bytes(), true)
        }
        Step::Dnat(address, port) => dnat(steps, *address, *port),
        Step::Masquerade => steps.nested_elem().push_name(c"masq").end_nested(),
        Step::Jump(chain) => verdict(steps, VerdictCode::Jump as u32, Some(chain)),
        Step::Goto(chain) => verdict(steps, VerdictCode::Goto as u32, Some(chain)),
        Step::Return => verdict(steps, VerdictCode::Return as u32, None),
        Step::Drop => verdict(steps, NF_DROP, None),
    }
}

/// The name of a link as it is compared: 16 bytes, filled up with NUL.
fn link_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

fn meta(steps: Steps<'_>, key: MetaKeys) -> Steps<'_> {
    steps.nested_elem().nested_data_meta().push_dreg(VALUE).push_key(key as u32).end_nested().end_nested()
}

fn payload(steps: Steps<'_>, base: PayloadBase, offset: u32, length: u32) -> Steps<'_> {
    steps
        .nested_elem()
        .nested_data_payload()
        .push_dreg(VALUE)
        .push_base(base as u32)
        .push_offset(offset)
        .push_len(length)
        .end_nested()
        .end_nested()
}

fn compare<'a>(steps: Steps<'a>, bytes: &[u8], equal: bool) -> Steps<'a> {
    let operation = if equal { CmpOps::Eq } else { CmpOps::Neq };
    steps
        .nested_elem()
        .nested_data_cmp()
        .push_sreg(VALUE)
        .push_op(operation as u32)
        .nested_data()
        .push_value(bytes)
        .end_nested()
        .end_nested()
        .end_nested()
}

/// Source or destination address against a network.
fn in_network(steps: Steps<'_>, address: std::net::IpAddr, prefix: u8, source: bool, inside: bool) -> Steps<'_> {
    let (bytes, offset) = match address {
        std::net::IpAddr::V4(v4) => (v4.octets().to_vec(), if source { 12 } else { 16 }),
        std::net::IpAddr::V6(v6) => (v6.octets().to_vec(), if source { 8 } else { 24 }),
    };
    let mask: Vec<u8> = (0..bytes.len() as u32)
        .map(|byte| {
            let bits = u32::from(prefix).saturating_sub(byte * 8).min(8);
            (0xff00u32 >> bits) as u8
        })
        .collect();
    let length = bytes.len() as u32;
    let mut steps = payload(steps, PayloadBase::NetworkHeader, offset, length);
    if u32::from(prefix) < length * 8 {
        steps = steps
            .nested_elem()
            .nested_data_bitwise()
            .push_sreg(VALUE)
            .push_dreg(VALUE)
            .push_len(length)
            .nested_mask()
            .push_value(&mask)
            .end_nested()
            .nested_xor()
            .push_value(&vec![0; bytes.len()])
            .end_nested()
            .end_nested()
            .end_nested();
    }
    let network: Vec<u8> = bytes.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
    compare(steps, &network, inside)
}

fn immediate<'a>(steps: Steps<'a>, register: u32, bytes: &[u8]) -> Steps<'a> {
    steps
        .nested_elem()
        .nested_data_immediate()
        .push_dreg(register)
        .nested_data()
        .push_value(bytes)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn dnat(steps: Steps<'_>, address: std::net::IpAddr, port: u16) -> Steps<'_> {
    let (bytes, family) = match address {
        std::net::IpAddr::V4(v4) => (v4.octets().to_vec(), Family::Ipv4),
        std::net::IpAddr::V6(v6) => (v6.octets().to_vec(), Family::Ipv6),
    };
    let flags = NatRangeFlags::ProtoSpecified as u32;
    let steps = immediate(immediate(steps, VALUE, &bytes), PORT, &port.to_be_bytes());
    steps
        .nested_elem()
        .nested_data_nat()
        // `NFT_NAT_DNAT`.
        .push_type(1)
        .push_family(u32::from(family as u8))
        .push_reg_addr_min(VALUE)
        .push_reg_proto_min(PORT)
        .push_flags(flags)
        .end_nested()
        .end_nested()
}

fn verdict<'a>(steps: Steps<'a>, code: u32, chain: Option<&str>) -> Steps<'a> {
    let verdict = steps
        .nested_elem()
        .nested_data_immediate()
        .push_dreg(Registers::RegVerdict as u32)
        .nested_data()
        .nested_verdict()
        .push_code(code);
    let verdict = match chain {
        Some(chain) => verdict.push_chain_bytes(chain.as_bytes()),
        None => verdict,
    };
    verdict.end_nested().end_nested().end_nested().end_nested()
}
