"""What a latent does in words: the tokens that it promotes, and whether it speaks of its input or of the output.

origin          the model and the SAE of a store, loaded again
logits          direct logit effects: the decoder row through the model's own final norm and head
input_score     how many of the tokens that fire the latent are among those that it promotes
output_score    what steering with the latent does to the probability of those that it promotes
table           all of it for some latents of a store
neighbours      the latents whose decoder rows point most nearly the same way
every           promoted and suppressed tokens and neighbours of all latents of a store, kept in it
"""

from gradsae_fast.describe.every import describe_every
from gradsae_fast.describe.table import describe

__all__ = ["describe", "describe_every"]
