"""What the one-off commands do, a file each: read the inputs, work once, and leave one folder with a manifest.

A folder that already holds what is asked for is read instead of made again. Whatever can be wrong with the inputs is
found before the long part begins.
"""
