"""Who may read a model: age v1 files, recipients and identities, encrypted folders.

    header  armor  bech32     the text of an age file; its ASCII form; how keys are written
    recipients  identities    who a file key is wrapped for, and who unwraps it
    x25519  hybrid  ssh       recipient types
    tagged  passwords
    keyring                   the identities of a caller -> the plaintext of a file
    keyfile                   what is in a key file
    stores                    a store whose files are decrypted as they are read
    hiding                    keys that programs do not show by accident
    rules                     what a policy requires of encryption
    jwe                       files that KServe's tools encrypted

`trust.encryption` encrypts and decrypts models, `trust.rekeying` changes recipients. The format is
c2sp.org/age; all ciphers are those of the package `cryptography`. No key, passphrase or file key is part of
an error, a repr or a log.
"""
