// Package tokens turns text into the tokens of a language model and back, and downloads models from the Hugging Face hub.
//
// Open reads the tokenizer.json of a model's folder: a byte-level BPE as GPT-2, GPT-NeoX and the published Mamba models have it. A
// model with a vocabulary of 256 and no tokenizer.json has one token for each byte. Encode and Decode convert whole texts. A Stream
// decodes tokens one at a time, as a Generator chooses them, and never returns a part of a character.
//
// Download copies a model from the hub into the cache that Hugging Face's own programs use, and continues a download that was
// interrupted.
//
// A tokenizer.json is untrusted input. Open checks it completely, and refuses what it does not support. Nothing in it is ignored if it
// would change a token.
package tokens
