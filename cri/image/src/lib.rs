//! Images: references, registry client, content store, unpacking, snapshots and garbage collection.
