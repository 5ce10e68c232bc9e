//! Rules of nftables by netlink.
