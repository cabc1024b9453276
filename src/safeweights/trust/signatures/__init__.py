"""Who signed what: keys, certificates, bundles."""
