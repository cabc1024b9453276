"""Stores that are reached over a network, each imported when a URL of its kind is opened.

    source  base                           sources and stores whose bytes come by request
    connections  responses  ranges         HTTP of our own, over `http.client`: see `ranges`
    web  hub  registry                     http(s)://, hf://, oci://
    buckets                                s3://, gs://, az://, through obstore

Nothing here knows of tensors, or verifies whose bytes these are; it sees to it that all bytes of a file
are those of one version of it.
"""
