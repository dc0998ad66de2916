// Offsets, timestamps, partitions and error codes appear in nearly every call: whoever imports the client has
// them. (There is no product of that vocabulary alone.)
@_exported public import MartletLogModel
