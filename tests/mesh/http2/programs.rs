//! Programs of others on either side: curl, h2load, nginx, HAProxy.
