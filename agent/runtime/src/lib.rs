//! The agent's port to CRI: translation to and from CRI, the client and its retries.
